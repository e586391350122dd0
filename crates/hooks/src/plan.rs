//! Plans: which activations a forward pass is asked for.

use std::collections::BTreeMap;

use crate::{Axis, Error, HookPoint, ModelInfo, Positions, Result, Scope, Selection, Site};

/// What a caller wants of a hook point, before the model is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Query heads; at keys and values, the key-value heads that these read.
    pub heads: Selection,
    /// Positions (of the query, at scores and patterns).
    pub positions: Positions,
}

impl Wanted {
    /// Every head and position.
    pub fn all() -> Self {
        Self::default()
    }

    /// These heads at every position.
    pub fn heads(heads: Selection) -> Self {
        Self { heads, ..Self::default() }
    }

    /// These positions of every head.
    pub fn positions(positions: Positions) -> Self {
        Self { positions, ..Self::default() }
    }
}

/// What is wanted of one hook point of a given model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Indices along the point's head axis, ascending; `None` where the point has
    /// no head axis.
    pub heads: Option<Vec<usize>>,
    /// Positions (of the query, at scores and patterns).
    pub positions: Positions,
}

/// Parameters of `hook_summary`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SummaryOptions {
    /// Number of latest keys that count as the window, the token itself included.
    pub window: usize,
    /// First position after the context, for the lookback mass, of every row that has
    /// no boundary of its own ([`Batch::with_boundaries`](crate::Batch::with_boundaries)).
    pub boundary: Option<usize>,
}

impl Default for SummaryOptions {
    fn default() -> Self {
        Self { window: 16, boundary: None }
    }
}

/// The activations that a forward pass is asked for.
///
/// Points enter through [`add`](Plan::add) and [`add_matching`](Plan::add_matching),
/// which check them against the model: a plan never names what the model lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    requests: BTreeMap<HookPoint, Request>,
    summary: Option<SummaryOptions>,
}

impl Plan {
    /// Adds one point; what was wanted of it before is widened.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`] if this model's layer does not have the point,
    /// [`Error::OutOfRange`] for a layer or head beyond the last.
    pub fn add(&mut self, point: HookPoint, wanted: &Wanted, info: &ModelInfo) -> Result<()> {
        info.check(point)?;
        let heads = match info.head_count(point) {
            None => None,
            Some(count) => Some(resolve_heads(point, &wanted.heads, count, info)?),
        };
        let request = Request { heads, positions: wanted.positions.clone() };
        self.widen(point, request);
        Ok(())
    }

    /// Adds every point of the model that a name with `*` matches, in the chosen
    /// layers. A star stands for any run of characters between two dots; a name
    /// without a star is that one point, whose layer must be among the chosen. Paths
    /// of Hugging Face modules are names, too (see [`ModelInfo::modules`]).
    ///
    /// # Errors
    ///
    /// [`Error::UnknownHook`] if no model could have such a point,
    /// [`Error::NoMatch`] if this one has none, and those of [`Plan::add`].
    pub fn add_matching(
        &mut self,
        pattern: &str,
        layers: &Selection,
        wanted: &Wanted,
        info: &ModelInfo,
    ) -> Result<()> {
        layers.resolve("layer", info.n_layers())?;
        let no_match =
            || Error::NoMatch { pattern: pattern.to_owned(), family: info.family.clone() };
        let in_layers =
            |point: &HookPoint| point.layer_index().is_none_or(|layer| layers.contains(layer));
        if !pattern.contains('*') {
            let point = info.point(pattern)?;
            return if in_layers(&point) { self.add(point, wanted, info) } else { Err(no_match()) };
        }
        let known = Site::ALL.iter().any(|site| matches_site(pattern, *site, info));
        if !known {
            return Err(Error::UnknownHook {
                name: pattern.chars().take(120).collect(),
                nearest: crate::point::nearest(pattern),
            });
        }
        let matching: Vec<_> = info
            .points()
            .into_iter()
            .filter(|point| in_layers(point) && info.names(*point).any(|name| glob(pattern, &name)))
            .collect();
        if matching.is_empty() {
            return Err(no_match());
        }
        matching.into_iter().try_for_each(|point| self.add(point, wanted, info))
    }

    /// Sets the parameters of the attention summary.
    pub fn set_summary(&mut self, options: SummaryOptions) {
        self.summary = Some(options);
    }

    /// The parameters of the attention summary.
    pub fn summary(&self) -> SummaryOptions {
        self.summary.unwrap_or_default()
    }

    /// What is wanted of this point; `None` if nothing.
    pub fn wants(&self, point: HookPoint) -> Option<&Request> {
        self.requests.get(&point)
    }

    /// Whether nothing is wanted at all.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether anything after the last layer is wanted.
    pub fn wants_end(&self) -> bool {
        [HookPoint::LN_FINAL, HookPoint::LOGITS].iter().any(|point| self.wants(*point).is_some())
    }

    /// The last layer with a wanted point. A forward pass of which no logits are
    /// wanted can stop after it.
    pub fn last_layer(&self) -> Option<usize> {
        self.requests.keys().filter_map(|point| point.layer_index()).max()
    }

    /// Every wanted point with its request, by layer.
    pub fn iter(&self) -> impl Iterator<Item = (HookPoint, &Request)> {
        self.requests.iter().map(|(point, request)| (*point, request))
    }

    /// Widens this plan by another one for the same model.
    ///
    /// # Errors
    ///
    /// [`Error::SummaryConflict`] if both want summaries with different parameters.
    pub fn merge(&mut self, other: &Plan) -> Result<()> {
        let summarises =
            |plan: &Plan| plan.requests.keys().any(|point| point.site() == Site::Summary);
        if summarises(other) {
            if summarises(self) && self.summary() != other.summary() {
                return Err(Error::SummaryConflict {
                    first: self.summary(),
                    second: other.summary(),
                });
            }
            self.summary = other.summary;
        }
        for (point, request) in other.iter() {
            self.widen(point, request.clone());
        }
        Ok(())
    }

    fn widen(&mut self, point: HookPoint, request: Request) {
        self.requests
            .entry(point)
            .and_modify(|held| {
                held.positions = held.positions.union(&request.positions);
                if let (Some(held), Some(more)) = (&mut held.heads, &request.heads) {
                    held.extend(more);
                    held.sort_unstable();
                    held.dedup();
                }
            })
            .or_insert(request);
    }
}

/// Head indices along the point's own head axis.
fn resolve_heads(
    point: HookPoint,
    heads: &Selection,
    count: usize,
    info: &ModelInfo,
) -> Result<Vec<usize>> {
    let key_value = point.site().axes().contains(&Axis::KvHead);
    let n_heads = point
        .layer_index()
        .and_then(|layer| info.layers.get(layer))
        .map_or(count, |layer| layer.n_heads);
    let query_heads = heads.resolve("head", n_heads)?;
    if !key_value {
        return Ok(query_heads);
    }
    let group = (n_heads / count.max(1)).max(1);
    let mut key_value_heads: Vec<usize> =
        query_heads.into_iter().map(|head| head / group).collect();
    key_value_heads.dedup();
    Ok(key_value_heads)
}

/// Whether the pattern could match the site in some layer of a model of this family: in
/// one of this model's, or in one whose number stands in the pattern.
fn matches_site(pattern: &str, site: Site, info: &ModelInfo) -> bool {
    let n_layers = match site.scope() {
        Scope::Model => 1,
        Scope::Layer => info.n_layers().max(1),
    };
    let named = pattern.split('.').filter_map(|part| part.parse().ok());
    (0..n_layers)
        .chain(named)
        .map(|layer| HookPoint::layer(site, layer))
        .any(|point| info.names(point).any(|name| glob(pattern, &name)))
}

/// Matches dot-separated names segment by segment; `*` stays within a segment.
fn glob(pattern: &str, name: &str) -> bool {
    let (mut patterns, mut parts) = (pattern.split('.'), name.split('.'));
    loop {
        match (patterns.next(), parts.next()) {
            (None, None) => return true,
            (Some(pattern), Some(part)) if glob_segment(pattern, part) => {}
            _ => return false,
        }
    }
}

/// One segment, in time linear in its length per star: each piece between stars
/// is taken at its first place, which never loses a match.
fn glob_segment(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(head) else {
        return false;
    };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let Some(tail) = pieces.pop() else {
        return true;
    };
    for piece in pieces {
        match text.find(piece) {
            Some(at) => text = &text[at + piece.len()..],
            None => return false,
        }
    }
    text.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_of(pattern: &str) -> Result<Plan> {
        let mut plan = Plan::default();
        plan.add_matching(pattern, &Selection::All, &Wanted::all(), &ModelInfo::example())?;
        Ok(plan)
    }

    fn names(plan: &Plan) -> Vec<String> {
        plan.iter().map(|(point, _)| point.to_string()).collect()
    }

    #[test]
    fn stars_expand_to_what_the_model_has() {
        assert_eq!(
            names(&plan_of("blocks.*.attn.hook_pattern").unwrap()),
            ["blocks.0.attn.hook_pattern", "blocks.1.attn.hook_pattern"]
        );
        assert_eq!(
            names(&plan_of("blocks.*.mlp.hook_router_*").unwrap()),
            ["blocks.1.mlp.hook_router_logits", "blocks.1.mlp.hook_router_probs"]
        );
        assert_eq!(
            names(&plan_of("blocks.1.hook_resid_*").unwrap()),
            ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_mid", "blocks.1.hook_resid_post"]
        );
    }

    #[test]
    fn module_paths_are_matched_too() {
        assert_eq!(
            names(&plan_of("model.layers.*.input_layernorm").unwrap()),
            ["blocks.0.ln1.hook_normalized", "blocks.1.ln1.hook_normalized"]
        );
        assert_eq!(names(&plan_of("model.layers.1").unwrap()), ["blocks.1.hook_resid_post"]);
        assert!(matches!(plan_of("model.layers.*.mlp"), Err(Error::UnknownHook { .. })));
    }

    #[test]
    fn what_matches_nothing_is_an_error() {
        assert!(matches!(plan_of("blocks.*.attn.hook_patern"), Err(Error::UnknownHook { .. })));
        assert!(matches!(plan_of("blocks.0.mlp.hook_router_*"), Err(Error::NoMatch { .. })));
        // A layer that a deeper model would have.
        assert!(matches!(plan_of("blocks.7.mlp.hook_*"), Err(Error::NoMatch { .. })));
        assert!(matches!(plan_of("blocks.0.mlp.hook_router_logits"), Err(Error::Absent { .. })));
        assert!(matches!(plan_of("blocks.2.hook_resid_pre"), Err(Error::OutOfRange { .. })));
        let mut plan = Plan::default();
        let only_first = "0".parse().unwrap();
        let outside = plan.add_matching(
            "blocks.1.hook_resid_pre",
            &only_first,
            &Wanted::all(),
            &ModelInfo::example(),
        );
        assert!(matches!(outside, Err(Error::NoMatch { .. })));
        let beyond = "0-7".parse().unwrap();
        let error = plan.add_matching("logits", &beyond, &Wanted::all(), &ModelInfo::example());
        assert!(matches!(error, Err(Error::OutOfRange { what: "layer", .. })));
    }

    #[test]
    fn heads_of_keys_are_those_that_the_queries_read() {
        let info = ModelInfo::example();
        let mut plan = Plan::default();
        let wanted = Wanted::heads("0,3".parse().unwrap());
        for name in ["blocks.0.attn.hook_q", "blocks.0.attn.hook_k"] {
            plan.add(name.parse().unwrap(), &wanted, &info).unwrap();
        }
        let heads = |name: &str| plan.wants(name.parse().unwrap()).unwrap().heads.clone().unwrap();
        assert_eq!(heads("blocks.0.attn.hook_q"), [0, 3]);
        assert_eq!(heads("blocks.0.attn.hook_k"), [0, 1]);
        let too_far = Wanted::heads("4".parse().unwrap());
        assert!(plan.add("blocks.0.attn.hook_q".parse().unwrap(), &too_far, &info).is_err());
    }

    #[test]
    fn merging_widens_and_refuses_two_summaries() {
        let info = ModelInfo::example();
        let summary: HookPoint = "blocks.0.attn.hook_summary".parse().unwrap();
        let mut first = Plan::default();
        first.add(summary, &Wanted::heads("0".parse().unwrap()), &info).unwrap();
        let mut second = Plan::default();
        second.add(summary, &Wanted::heads("2".parse().unwrap()), &info).unwrap();
        let mut merged = first.clone();
        merged.merge(&second).unwrap();
        assert_eq!(merged.wants(summary).unwrap().heads.as_deref(), Some(&[0, 2][..]));
        second.set_summary(SummaryOptions { window: 4, boundary: None });
        assert!(matches!(first.merge(&second), Err(Error::SummaryConflict { .. })));
    }

    #[test]
    fn the_end_and_the_last_layer() {
        let plan = plan_of("blocks.0.hook_resid_post").unwrap();
        assert_eq!(plan.last_layer(), Some(0));
        assert!(!plan.wants_end());
        let plan = plan_of("logits").unwrap();
        assert_eq!(plan.last_layer(), None);
        assert!(plan.wants_end());
        assert!(Plan::default().is_empty());
    }

    #[test]
    fn globs() {
        for (pattern, text, expected) in [
            ("*", "abc", true),
            ("a*c", "abc", true),
            ("a*c", "abcd", false),
            ("*b*b*", "abxb", true),
            ("*b*b*", "ab", false),
            ("ab*ba", "aba", false),
            ("", "", true),
        ] {
            assert_eq!(glob_segment(pattern, text), expected, "{pattern} {text}");
        }
    }
}
