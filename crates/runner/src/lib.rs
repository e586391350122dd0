//! From a model's name to its activations: loading, tokenizing, and forward
//! passes that hand activations to a sink while they run.
//!
//! A [`Source`] says where a model is, [`Model::load`] reads it, and a
//! [`Session`] runs batches of prompts through it. The one decision that shapes
//! this crate: there is one forward pass, written for being observed. The shared
//! layers record every hook point in one place; a family only maps
//! configurations and weight names onto them; and what nobody planned is not
//! computed.
//!
//! # Example: what `run_with_cache` does elsewhere
//!
//! ```
//! use hooks::{ActivationCache, Batch, Plan, Row, Selection, Wanted};
//! use runner::{LoadOptions, Model, Source, Special, Tokenizer};
//!
//! # fn main() -> Result<(), runner::Error> {
//! let source = Source::resolve("tiny-mixtral")?;
//! let model = Model::load(&source, &LoadOptions::default())?;
//! let prompt = Tokenizer::load(&source)?.encode("1 + 2 = 3", Special::Add)?;
//!
//! // Choose: the pattern of every layer's heads 0 and 1, and all router logits.
//! let mut plan = Plan::default();
//! let heads = Wanted::heads("0-1".parse()?);
//! plan.add_matching("blocks.*.attn.hook_pattern", &Selection::All, &heads, model.info())?;
//! plan.add_matching("blocks.*.mlp.hook_router_logits", &Selection::All, &Wanted::all(), model.info())?;
//!
//! // Run.
//! let n = prompt.ids.len();
//! let batch = Batch::new(vec![Row { request: 0, tokens: prompt.ids, offset: 0 }])?;
//! let mut cache = ActivationCache::new(plan);
//! model.run(&batch, &mut cache)?;
//!
//! // Look.
//! let pattern = cache.get(0, "blocks.1.attn.hook_pattern".parse()?)?;
//! assert_eq!(pattern.dims(), [2, n, n]); // [head, query_pos, key_pos]
//! let logits = cache.get(0, "blocks.0.mlp.hook_router_logits".parse()?)?;
//! assert_eq!(logits.dims(), [n, 8]); // [pos, expert]
//! # Ok(())
//! # }
//! ```

mod cache;
mod chat;
mod config;
mod error;
mod families;
mod fingerprint;
mod gguf;
mod hub;
mod inventory;
mod layers;
mod model;
mod placement;
mod refusal;
mod session;
mod source;
mod step;
mod tokenizer;
mod weights;

pub use cache::KvCache;
pub use chat::{Chat, Date, Message};
pub use config::{Config, Rope, RopeScaling};
pub use error::{Error, Fault, GgufFault, Result, SafetensorsFault};
pub use families::{
    Details, Trunk, gemma, gemma2, gemma3, gpt_neox, gpt2, granite, llama, mistral, mixtral, olmo2,
    phi3, qwen2, qwen3, smollm3,
};
pub use fingerprint::Fingerprint;
pub use hub::{HubEvent, HubFault, HubId, HubOptions, Network, Origin, Patience, Proxies, Token};
pub use inventory::{Claims, Inventory};
pub use model::{LoadOptions, Model, WeightDtype, read_config};
pub use placement::Placement;
pub use refusal::{Kind, Refusal, WeightFormat};
pub use session::{Flow, Input, Session};
pub use source::{BuiltIn, Resolved, Source};
pub use step::{Launches, OneByOne};
pub use tokenizer::{Encoding, Special, Tokenizer, Written};
