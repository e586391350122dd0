//! Real models: where their files are, and the perplexity of a text.

use std::path::PathBuf;

use hooks::{Activation, ActivationSink, HookPoint, ModelInfo, Plan, Wanted};
use runner::Model;

use super::{single, workspace};

/// The Lee corpus of news.
pub const TEXT: &str = "lee_background.cor";

/// A file that `scripts/fetch-test-models` brings.
pub fn file(name: &str) -> PathBuf {
    let folder = std::env::var_os("EIGENLENS_TEST_MODELS")
        .map_or_else(|| workspace("target/test-models"), PathBuf::from);
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is missing: run scripts/fetch-test-models, or set EIGENLENS_TEST_MODELS to a folder that holds it",
        path.display()
    );
    path
}

/// Sums the negative log-likelihood of each next token, in nats.
struct Loss {
    sum: f64,
    n: usize,
}

impl ActivationSink for Loss {
    fn plan(&mut self, info: &ModelInfo) -> hooks::Result<Plan> {
        let mut plan = Plan::default();
        plan.add(HookPoint::LOGITS, &Wanted::all(), info)?;
        Ok(plan)
    }

    fn record(&mut self, _: HookPoint, logits: &Activation<'_>) -> hooks::Result<()> {
        let tokens = &logits.batch.rows()[0].tokens;
        for (position, &next) in tokens.iter().enumerate().skip(1) {
            let logits: Vec<f32> = logits.tensor.get(0)?.get(position - 1)?.to_vec1()?;
            let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - most).exp()).sum();
            self.sum += most + sum.ln() - f64::from(logits[next as usize]);
            self.n += 1;
        }
        Ok(())
    }
}

/// Perplexity of the tokens behind the first one.
pub fn perplexity(model: &Model, ids: &[u32]) -> f64 {
    let mut loss = Loss { sum: 0.0, n: 0 };
    model.run(&single(0, ids), &mut loss).unwrap();
    assert_eq!(loss.n, ids.len() - 1);
    (loss.sum / loss.n as f64).exp()
}
