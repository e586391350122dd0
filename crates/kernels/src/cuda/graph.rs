//! Many launches as one: CUDA graphs.
//!
//! A launch costs the host some microseconds, a small layer's work on a GPU less: a step of one
//! token is then bound by the host. A captured graph holds the launches of a step, and giving them
//! all to the GPU again costs what one does.
//!
//! The one decision that shapes this module: what is captured is a plain function of a value that the
//! graph owns. Whatever the launches read and write of the device's memory is reached through that
//! value, so it lives as long as the graph; and the function is told nothing else, so the host
//! cannot put a number of one step into a launch that others repeat. What differs from one run to
//! the next is written into buffers of the value before it.
//!
//! Both builds have these functions. On main memory, whose operations tests run by emulation, a
//! graph runs the function again.

use std::fmt;

use candle_core::Device;

#[cfg(feature = "cuda")]
use super::device::Captured;
use crate::Error;

/// What a function did on a device, to be done again.
pub struct Graph<K, E> {
    // Dropped before what its launches use.
    launches: Launches<K, E>,
    kept: K,
}

enum Launches<K, E> {
    Function(fn(&K) -> Result<(), E>),
    #[cfg(feature = "cuda")]
    Captured(Captured),
}

impl<K, E> fmt::Debug for Graph<K, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.launches {
            Launches::Function(_) => "Graph { on the cpu }",
            #[cfg(feature = "cuda")]
            Launches::Captured(_) => "Graph { captured }",
        })
    }
}

impl<K, E: From<Error>> Graph<K, E> {
    /// Runs `run(&kept)` once, launch by launch, then captures it: on a GPU this second call launches
    /// nothing. The first one loads what is loaded at a first use, and lets candle bring to the GPU
    /// the strides of its operations, which it then keeps.
    ///
    /// `run` must do the same every time: nothing that it is not given by `kept` may matter to it. It
    /// must free what it takes of the device's memory, wait for nothing, and read nothing back; on a
    /// GPU what breaks these rules is an error of the driver or of candle. Meanwhile no other thread
    /// may do anything with the device: it would be captured, too.
    ///
    /// # Errors
    ///
    /// `kept` again, with what `run` says or the driver: whoever has it can go on launch by launch.
    /// [`Error::Device`] for a device that is neither.
    pub fn capture(device: &Device, kept: K, run: fn(&K) -> Result<(), E>) -> Result<Self, (K, E)> {
        let launches = match device {
            Device::Cpu => run(&kept).map(|()| Launches::Function(run)),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                super::device::capture(device, || run(&kept)).map(Launches::Captured)
            }
            other => {
                let got = format!("{:?}", other.location());
                Err(E::from(Error::Device { op: "capturing launches", what: "the step", got }))
            }
        };
        match launches {
            Ok(launches) => Ok(Self { launches, kept }),
            Err(error) => Err((kept, error)),
        }
    }

    /// Does it all again, without waiting for the end.
    ///
    /// # Errors
    ///
    /// The driver's; on main memory the function's.
    pub fn launch(&mut self) -> Result<(), E> {
        match &mut self.launches {
            Launches::Function(run) => run(&self.kept),
            #[cfg(feature = "cuda")]
            Launches::Captured(captured) => Ok(captured.launch()?),
        }
    }

    /// What it works on.
    pub fn kept(&self) -> &K {
        &self.kept
    }

    /// What it worked on, for work without it.
    pub fn into_kept(self) -> K {
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Adds one to a number, up to three.
    fn count(number: &Cell<usize>) -> Result<(), Error> {
        if number.get() == 3 {
            return Err(Error::range("count", "number", "below 3", 3));
        }
        number.set(number.get() + 1);
        Ok(())
    }

    /// A cache with a graph may go from thread to thread.
    const _: fn() = || {
        fn check<T: Send + Sync>() {}
        check::<Graph<Vec<candle_core::Tensor>, Error>>();
    };

    #[test]
    fn on_main_memory_the_function_runs_again() {
        let mut graph = Graph::capture(&Device::Cpu, Cell::new(0), count).unwrap();
        assert_eq!(graph.kept().get(), 1);
        graph.launch().unwrap();
        graph.kept().set(3);
        assert!(matches!(graph.launch(), Err(Error::Range { .. })));
        let (kept, error) = Graph::capture(&Device::Cpu, graph.into_kept(), count).unwrap_err();
        assert_eq!(kept.get(), 3);
        assert!(matches!(error, Error::Range { .. }));
    }
}
