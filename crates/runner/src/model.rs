//! Models: loading, and what can be asked of a loaded one.

use std::sync::Arc;

use candle_core::DType;
use hooks::{ActivationSink, Batch, Edits, ModelInfo};

use crate::cache::KvCache;
use crate::config::Config;
use crate::gguf::Gguf;
use crate::layers::Decoder;
use crate::placement::{Home, Placement, Sizes};
use crate::refusal;
use crate::session::{Input, Session};
use crate::source::Source;
use crate::weights::{Checkpoint, GgufWeights, PlacedWeights, Weights};
use crate::{Error, Result};

/// How weights are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightDtype {
    /// Quantized weights as they are stored, everything else in `f32`. Products
    /// unpack them to the `f32` values that they stand for, so this saves memory
    /// and changes no result. On GPUs everything else is in bfloat16, to which
    /// many rows at once have weights rounded that few have not.
    #[default]
    AsStored,
    /// Everything in `f32`.
    F32,
    /// On GPUs: weights and activations in bfloat16, as under [`AsStored`](Self::AsStored) where
    /// weights are not quantized.
    Bf16,
    /// On GPUs: weights and activations in half precision.
    F16,
}

impl WeightDtype {
    /// What layers on a GPU compute in, beside norms, rotary tables, softmax and routers, which
    /// are in `f32` inside.
    fn on_gpu(self) -> DType {
        match self {
            Self::AsStored | Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
            Self::F32 => DType::F32,
        }
    }
}

/// Where and how a model is loaded.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Where layers run.
    pub placement: Placement,
    /// How weights are held.
    pub dtype: WeightDtype,
}

/// A loaded model.
///
/// A model does not change after loading; several threads may run it at once. On devices their passes
/// take turns, with one another and with those of other models there, as does loading.
#[derive(Debug)]
pub struct Model {
    config: Config,
    info: ModelInfo,
    /// Shared with captured steps.
    pub(crate) decoder: Arc<Decoder>,
    /// `None`: on the CPU.
    home: Option<Home>,
}

impl Model {
    /// Loads a model's weights.
    ///
    /// # Numerics
    ///
    /// `F16` and `BF16` weights become `f32`; quantized blocks stay as they are
    /// under [`WeightDtype::AsStored`]. Every weight is checked to be finite.
    ///
    /// # Errors
    ///
    /// Everything that can be wrong with a model's files, with the file and the
    /// tensor or field; [`Error::HalfOnCpu`] for a dtype of GPUs without one;
    /// [`Error::NoDevice`]; a device's own, such as too little memory.
    pub fn load(source: &Source, options: &LoadOptions) -> Result<Self> {
        match source {
            Source::Gguf(path) => {
                let gguf = Gguf::open(path)?;
                let config = Config::from_gguf(&gguf)?;
                // The stored order of query and key rows depends on the width of a head.
                let d_head = config.info().layers.first().map_or(0, |layer| layer.d_head);
                let layout = config.gguf_layout();
                let weights = GgufWeights::new(&gguf, layout, options.dtype, d_head);
                Self::of(config, &weights, options)
            }
            _ => {
                let config = read_config(source)?;
                let checkpoint = Checkpoint::open(source)?;
                refusal::check_tensors(source, checkpoint.tensors().map(|(name, ..)| name))?;
                Self::of(config, &checkpoint, options)
            }
        }
    }

    fn of(config: Config, weights: &dyn Weights, options: &LoadOptions) -> Result<Self> {
        let info = config.info();
        let (decoder, home) = match &options.placement {
            Placement::Cpu => match options.dtype {
                WeightDtype::AsStored | WeightDtype::F32 => (config.decoder(weights)?, None),
                WeightDtype::Bf16 | WeightDtype::F16 => return Err(Error::HalfOnCpu),
            },
            Placement::Devices(devices) => {
                let dtype = options.dtype.on_gpu();
                let sizes = weights.sizes(dtype);
                let sizes = sizes.iter().map(|(name, bytes)| (name.as_str(), *bytes));
                let home = Home::new(devices, &Sizes::new(info.n_layers(), sizes), dtype)?;
                let decoder = {
                    let _turn = home.turn();
                    config.decoder(&PlacedWeights::new(weights, &home))
                };
                (decoder.map_err(|error| home.explained(error))?, Some(home))
            }
        };
        Ok(Self { config, info, decoder: Arc::new(decoder), home })
    }

    pub(crate) fn home(&self) -> Option<&Home> {
        self.home.as_ref()
    }

    /// An error of a pass, with what the devices say beside it.
    pub(crate) fn explained(&self, error: Error) -> Error {
        match &self.home {
            Some(home) => home.explained(error),
            None => error,
        }
    }

    /// The configuration that the model was loaded with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Sizes and layers.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Asks a sink, once, what it wants of this model.
    ///
    /// # Errors
    ///
    /// The sink's.
    pub fn session(&self, sink: &mut dyn ActivationSink) -> Result<Session<'_>> {
        let plan = sink.plan(&self.info)?;
        Session::new(self, plan)
    }

    /// Runs one batch of prompts and hands the sink what it wants of it: a
    /// session of one forward pass, without a cache and without edits.
    ///
    /// # Errors
    ///
    /// Those of [`Session::forward`].
    pub fn run(&self, batch: &Batch, sink: &mut dyn ActivationSink) -> Result<()> {
        let layers = 0..self.info.n_layers();
        let mut cache = KvCache::off();
        self.session(sink)?.forward(
            batch,
            Input::Tokens,
            layers,
            &mut cache,
            &Edits::default(),
            sink,
        )
    }
}

/// The configuration of a model, without its weights.
///
/// # Errors
///
/// As [`Model::load`], for the configuration alone.
pub fn read_config(source: &Source) -> Result<Config> {
    const FILE: &str = "config.json";
    if let Source::Gguf(path) = source {
        return Config::from_gguf(&Gguf::open(path)?);
    }
    refusal::check_folder(source)?;
    let json = source
        .open_json(FILE)?
        .ok_or_else(|| Error::FileMissing { folder: source.path(), expected: FILE })?;
    Config::from_json(&source.file_path(FILE), &json)
}
