//! What a run is asked to do, and what a run folder remembers of it.

use std::path::{Path, PathBuf};

use analysis::routing::RoutingSink;
use hooks::{ModelInfo, Selection};
use runner::{Fingerprint, LoadOptions, Origin, Special, WeightDtype, Written};
use serde_json::{Value, json};

use crate::device::Opened;
use crate::labels::{LabelOptions, LastResidual, ResidualSlot};
use crate::prompts::PromptSource;
use crate::recorders::Recorder;
use crate::recorders::capture::{Capture, CaptureOptions, WriterSlot};
use crate::recorders::spectral::SpectralOptions;
use crate::tokens::{Form, Tokenization};

/// Which model is run, and how.
#[derive(Clone, Debug)]
pub struct ModelChoice {
    /// A folder, a GGUF file, a built-in name or a hub id.
    pub model: String,
    /// Where it runs.
    pub device: Opened,
    /// How its weights are held.
    pub dtype: WeightDtype,
}

impl ModelChoice {
    pub(crate) fn load_options(&self) -> LoadOptions {
        LoadOptions { placement: self.device.placement.clone(), dtype: self.dtype }
    }
}

/// Prompts, a model, and what is measured: a run folder comes of it.
#[derive(Clone, Debug)]
pub struct Job {
    /// The model.
    pub model: ModelChoice,
    /// The prompts.
    pub prompts: PromptSource,
    /// How text becomes tokens.
    pub tokenization: Tokenization,
    /// Activations to write.
    pub capture: Option<CaptureOptions>,
    /// Attention graphs to measure.
    pub spectral: Option<SpectralOptions>,
    /// Layers whose routing is measured.
    pub routing: Option<Selection>,
    /// Labels that verdicts are to be about.
    pub labels: Option<LabelOptions>,
    /// The run folder.
    pub out: PathBuf,
    /// The command line, for the run folder's readers.
    pub command: Vec<String>,
}

impl Job {
    /// The recorders of what is measured. Each kind has its line here.
    ///
    /// The longest prompt has so many tokens.
    pub(crate) fn recorders(
        &self,
        writer: &WriterSlot,
        residual: &ResidualSlot,
        info: &ModelInfo,
        longest: usize,
    ) -> Vec<Box<dyn Recorder>> {
        let mut recorders: Vec<Box<dyn Recorder>> = Vec::new();
        if let Some(options) = &self.capture {
            recorders.push(Box::new(Capture::new(options.clone(), writer.clone())));
        }
        if let Some(options) = &self.spectral {
            recorders.push(Box::new(options.sink(info, longest)));
        }
        if let Some(layers) = &self.routing {
            recorders.push(Box::new(RoutingSink::new(layers.clone())));
        }
        if self.labels.is_some() {
            recorders.push(Box::new(LastResidual::new(residual.clone())));
        }
        recorders
    }

    /// The model's name without the folder that it lies in: a run goes on after the
    /// model was moved.
    fn model_name(&self) -> String {
        let path = Path::new(&self.model.model);
        path.file_name().map_or_else(|| self.model.model.clone(), |n| n.to_string_lossy().into())
    }

    /// Everything that the results depend on, and the model's name for the reader.
    ///
    /// A model of the hub has its commit beside its id: another commit is another
    /// job, whatever branch it was found by.
    pub(crate) fn describe(
        &self,
        fingerprint: &Fingerprint,
        origin: Option<&Origin>,
        inputs: &str,
        labels: Option<Value>,
    ) -> Value {
        let capture = self.capture.as_ref().map(|options| {
            let mut hooks = options.hooks.clone();
            hooks.sort();
            hooks.dedup();
            json!({
                "hooks": hooks,
                "layers": options.layers.to_string(),
                "heads": options.heads.to_string(),
                "positions": options.positions.to_string(),
                "stored": options.stored,
            })
        });
        let mut model = json!({
            "name": origin.map_or_else(|| self.model_name(), |origin| origin.model.clone()),
            "config_sha256": fingerprint.config,
            "tokenizer_sha256": fingerprint.tokenizer,
            "weights_sampled_sha256": fingerprint.weights,
        });
        if let Some(origin) = origin {
            model["revision"] = origin.commit.clone().into();
        }
        let chat = match self.tokenization.form {
            Form::AsGiven => None,
            Form::Chat { date } => Some(json!({ "date": date.map(|date| date.to_string()) })),
        };
        let mut description = json!({
            "model": model,
            "device": self.model.device.kind(),
            "dtype": match self.model.dtype {
                WeightDtype::AsStored => "as_stored",
                WeightDtype::F32 => "f32",
                WeightDtype::Bf16 => "bf16",
                WeightDtype::F16 => "f16",
            },
            "inputs_sha256": inputs,
            "special_tokens": self.tokenization.special == Special::Add,
            "special_tokens_in_text": match self.tokenization.written {
                Written::Parse => "parse",
                Written::Plain => "plain",
            },
            "chat": chat,
            "max_tokens": self.tokenization.max_tokens,
            "capture": capture,
            "spectral": self.spectral.as_ref().map(SpectralOptions::describe),
            "routing": self.routing.as_ref().map(|layers| json!({ "layers": layers.to_string() })),
        });
        // A run without labels is described as it was before there were any.
        if let Some(labels) = labels {
            description["labels"] = labels;
        }
        description
    }
}
