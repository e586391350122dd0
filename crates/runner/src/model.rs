//! Models: loading, and what can be asked of a loaded one.

use candle_core::Device;
use hooks::{ActivationSink, Batch, Edits, ModelInfo};

use crate::cache::KvCache;
use crate::config::Config;
use crate::gguf::Gguf;
use crate::layers::Decoder;
use crate::refusal;
use crate::session::{Input, Session};
use crate::source::Source;
use crate::weights::{Checkpoint, GgufWeights};
use crate::{Error, Result};

/// How weights are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightDtype {
    /// Quantized weights as they are stored, everything else in `f32`. Products
    /// unpack them to the `f32` values that they stand for, so this saves memory
    /// and changes no result.
    #[default]
    AsStored,
    /// Everything in `f32`.
    F32,
}

/// Where and how a model is loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The device. This build runs models on the CPU.
    pub device: Device,
    /// How weights are held.
    pub dtype: WeightDtype,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { device: Device::Cpu, dtype: WeightDtype::AsStored }
    }
}

/// A loaded model.
///
/// A model does not change after loading; several threads may run it at once.
#[derive(Debug)]
pub struct Model {
    config: Config,
    info: ModelInfo,
    pub(crate) decoder: Decoder,
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
    /// tensor or field; [`Error::Device`] for a device other than the CPU.
    pub fn load(source: &Source, options: &LoadOptions) -> Result<Self> {
        if !options.device.is_cpu() {
            return Err(Error::Device { device: format!("{:?}", options.device.location()) });
        }
        match source {
            Source::Gguf(path) => Self::load_gguf(&Gguf::open(path)?, options.dtype),
            _ => {
                let config = read_config(source)?;
                let checkpoint = Checkpoint::open(source)?;
                refusal::check_tensors(source, checkpoint.tensors().map(|(name, ..)| name))?;
                let decoder = config.decoder(&checkpoint)?;
                Ok(Self { info: config.info(), config, decoder })
            }
        }
    }

    fn load_gguf(gguf: &Gguf, dtype: WeightDtype) -> Result<Self> {
        let config = Config::from_gguf(gguf)?;
        let info = config.info();
        // The stored order of query and key rows depends on the width of a head.
        let d_head = info.layers.first().map_or(0, |layer| layer.d_head);
        let decoder =
            config.decoder(&GgufWeights::new(gguf, config.gguf_layout(), dtype, d_head))?;
        Ok(Self { info, config, decoder })
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
