//! Hook points: the closed table of places where a forward pass can be observed.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// Whether a site exists once per model or once per layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Once per model.
    Model,
    /// Once per layer.
    Layer,
}

/// What an axis of an activation counts (the batch axis comes before these).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Axis {
    /// Token position.
    Pos,
    /// Position of the query.
    QueryPos,
    /// Position of the key.
    KeyPos,
    /// Width of the residual stream.
    DModel,
    /// Query head.
    Head,
    /// Key-value head.
    KvHead,
    /// Width of one head.
    DHead,
    /// Width of a dense MLP.
    DMlp,
    /// Expert.
    Expert,
    /// Rank among the chosen experts.
    Rank,
    /// Vocabulary entry.
    DVocab,
    /// Column of the attention summary, see [`Statistic`](crate::Statistic).
    Statistic,
}

impl Axis {
    /// The axis's name in listings and shapes.
    pub const fn name(self) -> &'static str {
        match self {
            Axis::Pos => "pos",
            Axis::QueryPos => "query_pos",
            Axis::KeyPos => "key_pos",
            Axis::DModel => "d_model",
            Axis::Head => "head",
            Axis::KvHead => "kv_head",
            Axis::DHead => "d_head",
            Axis::DMlp => "d_mlp",
            Axis::Expert => "expert",
            Axis::Rank => "k",
            Axis::DVocab => "d_vocab",
            Axis::Statistic => "statistic",
        }
    }
}

/// Builds [`Site`] and its table. Adding a capture point is one entry here and
/// one `record` in the layer that computes it.
macro_rules! sites {
    ($($(#[doc = $doc:literal])+ $site:ident, $scope:ident, $name:literal, [$($axis:ident),*];)*) => {
        /// A kind of place in the forward pass; with a layer it is a [`HookPoint`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Site { $($(#[doc = $doc])+ $site,)* }

        impl Site {
            /// Every site, in the order of the forward pass.
            pub const ALL: &'static [Site] = &[$(Site::$site,)*];

            /// Whether the site exists per model or per layer.
            pub const fn scope(self) -> Scope { match self { $(Site::$site => Scope::$scope,)* } }

            /// The name, with `{l}` where the layer's number stands.
            pub const fn template(self) -> &'static str { match self { $(Site::$site => $name,)* } }

            /// Axes after the batch axis.
            pub const fn axes(self) -> &'static [Axis] { match self { $(Site::$site => &[$(Axis::$axis,)*],)* } }
        }
    };
}

sites! {
    /// Token embeddings, as they enter the residual stream.
    Embed, Model, "hook_embed", [Pos, DModel];
    /// Learned position embeddings.
    PosEmbed, Model, "hook_pos_embed", [Pos, DModel];
    /// Residual stream before the layer.
    ResidPre, Layer, "blocks.{l}.hook_resid_pre", [Pos, DModel];
    /// Input of attention, after its norm.
    Ln1Normalized, Layer, "blocks.{l}.ln1.hook_normalized", [Pos, DModel];
    /// Queries, after q norm, before rotary.
    Q, Layer, "blocks.{l}.attn.hook_q", [Pos, Head, DHead];
    /// Keys, after k norm, before rotary.
    K, Layer, "blocks.{l}.attn.hook_k", [Pos, KvHead, DHead];
    /// Values.
    V, Layer, "blocks.{l}.attn.hook_v", [Pos, KvHead, DHead];
    /// Queries after rotary.
    RotQ, Layer, "blocks.{l}.attn.hook_rot_q", [Pos, Head, DHead];
    /// Keys after rotary.
    RotK, Layer, "blocks.{l}.attn.hook_rot_k", [Pos, KvHead, DHead];
    /// Attention scores: scaled products, −∞ where masked.
    AttnScores, Layer, "blocks.{l}.attn.hook_attn_scores", [Head, QueryPos, KeyPos];
    /// Attention pattern: softmax of the scores.
    Pattern, Layer, "blocks.{l}.attn.hook_pattern", [Head, QueryPos, KeyPos];
    /// Log-sum-exp of the scores over the visible keys.
    Lse, Layer, "blocks.{l}.attn.hook_lse", [Head, Pos];
    /// Named statistics of the pattern, computed without the pattern.
    Summary, Layer, "blocks.{l}.attn.hook_summary", [Head, Pos, Statistic];
    /// Mixed values per head, before the output projection.
    Z, Layer, "blocks.{l}.attn.hook_z", [Pos, Head, DHead];
    /// What attention adds to the residual stream.
    AttnOut, Layer, "blocks.{l}.hook_attn_out", [Pos, DModel];
    /// Residual stream between attention and MLP.
    ResidMid, Layer, "blocks.{l}.hook_resid_mid", [Pos, DModel];
    /// Input of the MLP or the router, after its norm.
    Ln2Normalized, Layer, "blocks.{l}.ln2.hook_normalized", [Pos, DModel];
    /// Gate projection of a dense MLP before its activation function (the only
    /// projection where the MLP is not gated).
    MlpPre, Layer, "blocks.{l}.mlp.hook_pre", [Pos, DMlp];
    /// Input of a dense MLP's last projection.
    MlpPost, Layer, "blocks.{l}.mlp.hook_post", [Pos, DMlp];
    /// Router logits: the gate's raw output.
    RouterLogits, Layer, "blocks.{l}.mlp.hook_router_logits", [Pos, Expert];
    /// Router probabilities over all experts.
    RouterProbs, Layer, "blocks.{l}.mlp.hook_router_probs", [Pos, Expert];
    /// The chosen experts, best first.
    ExpertIndices, Layer, "blocks.{l}.mlp.hook_expert_indices", [Pos, Rank];
    /// What multiplies the chosen experts' outputs, paired with the indices.
    ExpertWeights, Layer, "blocks.{l}.mlp.hook_expert_weights", [Pos, Rank];
    /// What the MLP or the experts add to the residual stream.
    MlpOut, Layer, "blocks.{l}.hook_mlp_out", [Pos, DModel];
    /// Residual stream after the layer.
    ResidPost, Layer, "blocks.{l}.hook_resid_post", [Pos, DModel];
    /// Output of the final norm.
    LnFinalNormalized, Model, "ln_final.hook_normalized", [Pos, DModel];
    /// Logits over the vocabulary.
    Logits, Model, "logits", [Pos, DVocab];
}

impl Site {
    /// Where the position axis stands among [`Site::axes`] (queries for patterns).
    pub fn position_axis(self) -> Option<usize> {
        self.axes().iter().position(|axis| matches!(axis, Axis::Pos | Axis::QueryPos))
    }

    /// Where the head axis stands among [`Site::axes`].
    pub fn head_axis(self) -> Option<usize> {
        self.axes().iter().position(|axis| matches!(axis, Axis::Head | Axis::KvHead))
    }

    /// Where the key axis stands among [`Site::axes`].
    pub fn key_axis(self) -> Option<usize> {
        self.axes().iter().position(|axis| *axis == Axis::KeyPos)
    }

    /// The axes as text, such as `[batch, pos, d_model]`.
    pub fn shape_text(self) -> String {
        let axes: Vec<_> = self.axes().iter().map(|axis| axis.name()).collect();
        format!("[batch, {}]", axes.join(", "))
    }
}

/// One place of the forward pass: a site, and a layer where the site has layers.
///
/// It reads and prints as the TransformerLens name. Which modules of a Hugging Face
/// model give the same depends on the model: [`ModelInfo::point`](crate::ModelInfo::point)
/// reads their paths, too.
///
/// ```
/// use hooks::{HookPoint, Site};
///
/// let point: HookPoint = "blocks.5.attn.hook_pattern".parse()?;
/// assert_eq!(point, HookPoint::layer(Site::Pattern, 5));
/// assert_eq!(point.to_string(), "blocks.5.attn.hook_pattern");
/// let error = "blocks.5.attn.hook_patern".parse::<HookPoint>().unwrap_err();
/// assert!(error.to_string().contains("nearest: blocks.5.attn.hook_pattern"));
/// # Ok::<(), hooks::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HookPoint {
    // The layer comes first so that points sort by layer, then by site.
    layer: Option<usize>,
    site: Site,
}

impl HookPoint {
    /// The point of a per-layer site. For a site that exists once per model the
    /// layer is meaningless and dropped.
    pub const fn layer(site: Site, layer: usize) -> Self {
        match site.scope() {
            Scope::Layer => Self { layer: Some(layer), site },
            Scope::Model => Self { layer: None, site },
        }
    }

    /// The point of a site that exists once per model; `None` for others.
    pub const fn model(site: Site) -> Option<Self> {
        match site.scope() {
            Scope::Model => Some(Self { layer: None, site }),
            Scope::Layer => None,
        }
    }

    /// Token embeddings.
    pub const EMBED: Self = Self { layer: None, site: Site::Embed };
    /// Learned position embeddings.
    pub const POS_EMBED: Self = Self { layer: None, site: Site::PosEmbed };
    /// Output of the final norm.
    pub const LN_FINAL: Self = Self { layer: None, site: Site::LnFinalNormalized };
    /// Logits.
    pub const LOGITS: Self = Self { layer: None, site: Site::Logits };

    /// The site.
    pub const fn site(self) -> Site {
        self.site
    }

    /// The layer, where the site has layers.
    pub const fn layer_index(self) -> Option<usize> {
        self.layer
    }
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.layer, self.site.template().split_once("{l}")) {
            (Some(layer), Some((before, after))) => write!(f, "{before}{layer}{after}"),
            _ => f.write_str(self.site.template()),
        }
    }
}

impl fmt::Debug for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for HookPoint {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Site::ALL
            .iter()
            .find_map(|&site| {
                match_template(site.template(), name).map(|layer| Self { layer, site })
            })
            .ok_or_else(|| Error::UnknownHook { name: shorten(name), nearest: nearest(name) })
    }
}

/// `Some(layer)` if `name` is `template` with a number in place of `{l}`.
pub(crate) fn match_template(template: &str, name: &str) -> Option<Option<usize>> {
    match template.split_once("{l}") {
        None => (template == name).then_some(None),
        Some((before, after)) => {
            let digits = name.strip_prefix(before)?.strip_suffix(after)?;
            let plain = digits == "0" || !digits.starts_with('0');
            let numeric = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            (plain && numeric).then(|| digits.parse().ok())?.map(Some)
        }
    }
}

/// The three most similar names, with the layer that `name` seems to mean.
pub(crate) fn nearest(name: &str) -> Vec<String> {
    // Similarity costs the product of the lengths, so a hostile name is cut first.
    let name = shorten(name);
    let layer = name
        .split('.')
        .find(|part| *part == "*" || part.bytes().all(|b| b.is_ascii_digit()) && !part.is_empty())
        .unwrap_or("0");
    let mut known: Vec<(f64, String)> = Site::ALL
        .iter()
        .map(|site| {
            let text = site.template().replace("{l}", layer);
            // A short name such as `hook_pattern` should find its full form.
            let tail = text.rsplit('.').next().unwrap_or(&text);
            let score = strsim::jaro_winkler(&name, &text).max(strsim::jaro_winkler(&name, tail));
            (score, text)
        })
        .collect();
    known.sort_by(|a, b| b.0.total_cmp(&a.0));
    known.into_iter().take(3).map(|(_, text)| text).collect()
}

fn shorten(name: &str) -> String {
    name.chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_reads_back_what_it_prints() {
        for &site in Site::ALL {
            for layer in [0, 7, 123] {
                let point = HookPoint::layer(site, layer);
                assert_eq!(point.to_string().parse::<HookPoint>().unwrap(), point);
            }
        }
    }

    #[test]
    fn unknown_names_are_refused() {
        for name in [
            "",
            "blocks.0",
            "blocks.00.hook_resid_pre",
            "blocks.-1.hook_resid_pre",
            "blocks.x.hook_z",
            "blocks..hook_resid_pre",
            "blocks.99999999999999999999999.hook_resid_pre",
            "hook_pattern",
            "logits ",
            "λ",
        ] {
            assert!(name.parse::<HookPoint>().is_err(), "{name}");
        }
        assert!("x".repeat(1_000_000).parse::<HookPoint>().is_err());
    }

    #[test]
    fn a_short_name_finds_its_full_form() {
        assert_eq!(nearest("hook_pattern")[0], "blocks.0.attn.hook_pattern");
        assert_eq!(nearest("blocks.*.attn.hook_patern")[0], "blocks.*.attn.hook_pattern");
    }
}
