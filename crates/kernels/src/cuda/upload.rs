//! Small vectors of the host in the memory of a device.

use std::cell::RefCell;

use candle_core::{Device, Tensor};

use crate::{Error, Result};

/// Vectors that are kept; a pass over a batch uses three or four.
const KEPT: usize = 16;

struct Upload {
    values: Vec<usize>,
    tensor: Tensor,
}

thread_local! {
    /// The last ones used, the latest at the end. Every layer of a pass asks for the same lengths and
    /// offsets, which are copied once. Of each thread: what is let go is let go on its device's
    /// stream, which is not another thread's to use.
    static UPLOADS: RefCell<Vec<Upload>> = const { RefCell::new(Vec::new()) };
}

/// The values as `u32` in the memory of a device.
///
/// # Errors
///
/// [`Error::Range`] for a value of 2³² and more, [`Error::Candle`] if they cannot be put there.
pub fn upload(
    op: &'static str,
    what: &'static str,
    values: &[usize],
    device: &Device,
) -> Result<Tensor> {
    let words = || -> Result<Tensor> {
        let word = |&value: &usize| {
            u32::try_from(value).map_err(|_| Error::range(op, what, "below 2³²", value))
        };
        let words = values.iter().map(word).collect::<Result<Vec<u32>>>()?;
        let bytes = size_of_val(words.as_slice());
        Tensor::from_vec(words, values.len(), device).map_err(Error::making(op, device, bytes))
    };
    if device.is_cpu() {
        return words();
    }
    UPLOADS.with_borrow_mut(|uploads| {
        // A GPU that was opened twice is two devices.
        let here =
            |held: &Upload| held.tensor.device().same_device(device) && held.values == values;
        let upload = match uploads.iter().position(here) {
            Some(place) => uploads.remove(place),
            None => Upload { values: values.to_vec(), tensor: words()? },
        };
        let tensor = upload.tensor.clone();
        if uploads.len() == KEPT {
            uploads.remove(0);
        }
        uploads.push(upload);
        Ok(tensor)
    })
}
