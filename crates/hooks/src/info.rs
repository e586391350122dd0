//! What a loaded model is, as far as its observers must know.

use crate::{Axis, Error, HookPoint, Result, Scope, Site};

/// The second half of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpInfo {
    /// One MLP for every token.
    Dense {
        /// Width between the projections.
        d_mlp: usize,
    },
    /// A mixture of experts.
    Mixture {
        /// Number of experts.
        n_experts: usize,
        /// How many of them each token uses.
        k: usize,
    },
}

/// One layer of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerInfo {
    /// Query heads.
    pub n_heads: usize,
    /// Key-value heads.
    pub n_kv_heads: usize,
    /// Width of one head.
    pub d_head: usize,
    /// Sliding window in tokens, the token itself included; `None` sees everything before it.
    pub window: Option<usize>,
    /// What multiplies `q · k`.
    pub scale: f64,
    /// `c` of the scores' cap `c tanh(scale · q · k / c)`; `None`: they have none.
    pub soft_cap: Option<f64>,
    /// Dense MLP or mixture of experts.
    pub mlp: MlpInfo,
    /// Attention and MLP read the same residual: there is no `hook_resid_mid`.
    pub parallel_residual: bool,
    /// Attention and MLP each read the output of a norm; without, they read the
    /// residual stream as it is: there is no `hook_normalized`.
    pub pre_norms: bool,
    /// Queries and keys are rotated by their positions; without, there are no
    /// `hook_rot_q` and `hook_rot_k`.
    pub rotary: bool,
}

/// A model's family and sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// The family, as `model_type` names it.
    pub family: String,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Vocabulary entries.
    pub d_vocab: usize,
    /// Longest sequence the model was made for, in tokens.
    pub n_ctx: usize,
    /// Whether learned position embeddings are added to the token embeddings.
    pub has_pos_embed: bool,
    /// The most tokens of a sequence before the rotary frequencies of all its positions
    /// change; `None` if they never do. A longer sequence does not begin as its first
    /// tokens alone would.
    pub frequency_switch: Option<usize>,
    /// The layers, first to last.
    pub layers: Vec<LayerInfo>,
    /// Modules of the Hugging Face model whose output is a hook point, with `{l}`
    /// where the layer's number stands; the order of axes may differ. A module whose
    /// output is anything else (a projection before its norm, a branch before its
    /// multiplier) is not among them.
    pub modules: &'static [(Site, &'static str)],
}

impl ModelInfo {
    /// A two-layer model, one dense layer and one mixture, for examples and tests.
    pub fn example() -> Self {
        let layer = |mlp| LayerInfo {
            n_heads: 4,
            n_kv_heads: 2,
            d_head: 8,
            window: None,
            scale: 1.0 / 8.0_f64.sqrt(),
            soft_cap: None,
            mlp,
            parallel_residual: false,
            pre_norms: true,
            rotary: true,
        };
        Self {
            family: "example".to_owned(),
            d_model: 32,
            d_vocab: 99,
            n_ctx: 64,
            has_pos_embed: false,
            frequency_switch: None,
            layers: vec![
                layer(MlpInfo::Dense { d_mlp: 64 }),
                layer(MlpInfo::Mixture { n_experts: 4, k: 2 }),
            ],
            modules: &[
                (Site::Ln1Normalized, "model.layers.{l}.input_layernorm"),
                (Site::ResidPost, "model.layers.{l}"),
                (Site::Logits, "lm_head"),
            ],
        }
    }

    /// Number of layers.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// Every hook point that this model has, in the order of the forward pass.
    pub fn points(&self) -> Vec<HookPoint> {
        let model_wide = |site: &Site| HookPoint::model(*site);
        let is_end =
            |point: &HookPoint| matches!(point.site(), Site::LnFinalNormalized | Site::Logits);
        let (end, start): (Vec<_>, Vec<_>) =
            Site::ALL.iter().filter_map(model_wide).partition(is_end);
        let layers = (0..self.n_layers()).flat_map(|layer| {
            let per_layer = |site: &&Site| site.scope() == Scope::Layer;
            Site::ALL.iter().filter(per_layer).map(move |&site| HookPoint::layer(site, layer))
        });
        start
            .into_iter()
            .chain(layers)
            .chain(end)
            .filter(|point| self.check(*point).is_ok())
            .collect()
    }

    /// The point of a name: a hook point's own, or the path of one of this model's
    /// Hugging Face [`modules`](Self::modules).
    ///
    /// # Errors
    ///
    /// [`Error::UnknownHook`] for any other name.
    pub fn point(&self, name: &str) -> Result<HookPoint> {
        let of_module = |(site, path): &(Site, &str)| {
            Some(match crate::point::match_template(path, name)? {
                Some(layer) => HookPoint::layer(*site, layer),
                None => HookPoint::model(*site)?,
            })
        };
        name.parse().or_else(|error| self.modules.iter().find_map(of_module).ok_or(error))
    }

    /// The names of a point: its own, and the paths of its Hugging Face modules.
    pub(crate) fn names(&self, point: HookPoint) -> impl Iterator<Item = String> {
        let own = std::iter::once(point.to_string());
        own.chain(self.modules.iter().filter(move |(site, _)| *site == point.site()).map(
            move |(_, path)| match point.layer_index() {
                Some(layer) => path.replace("{l}", &layer.to_string()),
                None => (*path).to_owned(),
            },
        ))
    }

    /// Whether this model has the point.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] for a layer beyond the last, [`Error::Absent`] for a
    /// point that this layer does not have.
    pub fn check(&self, point: HookPoint) -> Result<()> {
        let absent = |reason| Err(Error::Absent { point, family: self.family.clone(), reason });
        let Some(index) = point.layer_index() else {
            return match point.site() {
                Site::PosEmbed if !self.has_pos_embed => {
                    absent("its positions are not learned embeddings")
                }
                _ => Ok(()),
            };
        };
        let layer = self.layers.get(index).ok_or(Error::OutOfRange {
            what: "layer",
            index,
            count: self.n_layers(),
        })?;
        match (point.site(), layer.mlp) {
            (Site::ResidMid, _) if layer.parallel_residual => {
                absent("attention and MLP of this layer read the same residual")
            }
            (Site::Ln1Normalized | Site::Ln2Normalized, _) if !layer.pre_norms => {
                absent("attention and MLP of this layer read the residual stream as it is")
            }
            (Site::RotQ | Site::RotK, _) if !layer.rotary => {
                absent("this layer has no rotary positions: `hook_q` and `hook_k` enter its scores")
            }
            (Site::MlpPre | Site::MlpPost, MlpInfo::Mixture { .. }) => {
                absent("this layer is a mixture of experts, not a dense MLP")
            }
            (
                Site::RouterLogits | Site::RouterProbs | Site::ExpertIndices | Site::ExpertWeights,
                MlpInfo::Dense { .. },
            ) => absent("this layer is a dense MLP, not a mixture of experts"),
            _ => Ok(()),
        }
    }

    /// Number of entries along the point's head axis, if it has one.
    pub(crate) fn head_count(&self, point: HookPoint) -> Option<usize> {
        let layer = self.layers.get(point.layer_index()?)?;
        match point.site().axes()[point.site().head_axis()?] {
            Axis::KvHead => Some(layer.n_kv_heads),
            _ => Some(layer.n_heads),
        }
    }

    /// Entries of one axis that does not depend on the sequence; `None` for
    /// positions, and for layers that do not have the axis.
    pub fn axis_len(&self, point: HookPoint, axis: Axis) -> Option<usize> {
        let layer = point.layer_index().and_then(|index| self.layers.get(index));
        match axis {
            Axis::Pos | Axis::QueryPos | Axis::KeyPos => None,
            Axis::DModel => Some(self.d_model),
            Axis::DVocab => Some(self.d_vocab),
            Axis::Statistic => Some(crate::Statistic::COUNT),
            Axis::Head => Some(layer?.n_heads),
            Axis::KvHead => Some(layer?.n_kv_heads),
            Axis::DHead => Some(layer?.d_head),
            Axis::DMlp => match layer?.mlp {
                MlpInfo::Dense { d_mlp } => Some(d_mlp),
                MlpInfo::Mixture { .. } => None,
            },
            Axis::Expert | Axis::Rank => match layer?.mlp {
                MlpInfo::Mixture { n_experts, k } => {
                    Some(if axis == Axis::Expert { n_experts } else { k })
                }
                MlpInfo::Dense { .. } => None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_follow_the_layers() {
        let info = ModelInfo::example();
        let points = info.points();
        assert_eq!(points.first().unwrap().to_string(), "hook_embed");
        assert_eq!(points.last().unwrap().to_string(), "logits");
        let names: Vec<_> = points.iter().map(ToString::to_string).collect();
        assert!(names.contains(&"blocks.0.mlp.hook_pre".to_owned()));
        assert!(!names.contains(&"blocks.1.mlp.hook_pre".to_owned()));
        assert!(names.contains(&"blocks.1.mlp.hook_router_logits".to_owned()));
        assert!(!names.contains(&"hook_pos_embed".to_owned()));
    }

    #[test]
    fn modules_are_read_beside_hook_points() {
        let info = ModelInfo::example();
        let point = HookPoint::layer(Site::ResidPost, 1);
        assert_eq!(info.point("model.layers.1").unwrap(), point);
        assert_eq!(info.point("blocks.1.hook_resid_post").unwrap(), point);
        assert_eq!(info.point("lm_head").unwrap(), HookPoint::LOGITS);
        for name in ["model.layers.1.mlp", "model.layers.01", "model.layers", "lm_head.weight"] {
            assert!(matches!(info.point(name), Err(Error::UnknownHook { .. })), "{name}");
        }
        assert!(info.names(point).eq(["blocks.1.hook_resid_post", "model.layers.1"]));
    }

    #[test]
    fn absence_says_why() {
        let info = ModelInfo::example();
        let error = info.check("blocks.0.mlp.hook_router_probs".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("dense MLP"));
        assert!(info.check("blocks.2.hook_resid_pre".parse().unwrap()).is_err());
    }
}
