//! Forward passes of one model for one sink.

use std::ops::Range;

use candle_core::Tensor;
use hooks::{ActivationSink, Batch, Edit, Edits, HookPoint, Plan, Site};
use kernels::elementwise::add;

use crate::cache::KvCache;
use crate::layers::{Away, Pass, UnderWay};
use crate::model::Model;
use crate::placement::Home;
use crate::{Error, Result};

/// What enters the model.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// The batch's tokens.
    Tokens,
    /// Embeddings in place of the tokens': `[batch, pos, d_model]`, `f32`.
    Embeddings(&'a Tensor),
    /// A residual stream that enters the first of the layers to run, from another
    /// model or another pass: `[batch, pos, d_model]`, `f32`.
    Residual(&'a Tensor),
}

/// A model, and what a sink wants of it.
///
/// The plan is made once; every prefill and decode step of the session follows it.
#[derive(Debug)]
pub struct Session<'m> {
    model: &'m Model,
    plan: Plan,
}

impl<'m> Session<'m> {
    pub(crate) fn new(model: &'m Model, plan: Plan) -> Result<Self> {
        // A sink may bring a plan that was made for another model.
        plan.iter().try_for_each(|(point, _)| model.info().check(point))?;
        Ok(Self { model, plan })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Runs a batch through the layers.
    ///
    /// Computed is what the plan wants and what that needs: the pass stops after
    /// the last layer with a wanted point, and final norm and logits are computed
    /// at wanted positions only. Two things widen that: a cache that keeps runs
    /// every layer of the range, so that it can be continued, and an edit after
    /// the last layer is made at every position.
    ///
    /// Rows of unequal length are padded on the right; padding influences no
    /// valid position. `sink` is the one that the session was made for.
    ///
    /// # Numerics
    ///
    /// A row's activations are bit for bit the same alone and in any batch, and
    /// whatever else is wanted beside them.
    ///
    /// # Errors
    ///
    /// Before anything runs: [`Error::TokenId`], [`Error::TooLong`],
    /// [`Error::InputShape`], [`Error::LayerRange`], [`Error::OutsideRange`] if the
    /// plan or an edit names a point that these layers do not pass,
    /// [`Error::CachePosition`], [`Error::CacheRows`], [`Error::FrequencySwitch`], and
    /// [`hooks::Error::Edit`] for a kind of edit that is not built. Later: the sink's own
    /// errors.
    pub fn forward(
        &self,
        batch: &Batch,
        input: Input<'_>,
        layers: Range<usize>,
        cache: &mut KvCache,
        edits: &Edits,
        sink: &mut dyn ActivationSink,
    ) -> Result<()> {
        let mut flow = self.flow();
        flow.forward(batch, input, layers, cache, edits, sink)?;
        flow.hand_over(0, sink)
    }

    /// Passes of which each begins before the sink has all of the one before it.
    pub fn flow(&self) -> Flow<'_> {
        let under_way = self.model.home().map(|home| UnderWay::new(home.outbox()));
        Flow { session: self, under_way }
    }

    /// What can be wrong with a pass before it runs. Returns one past the last layer that must run.
    fn check(
        &self,
        batch: &Batch,
        input: Input<'_>,
        layers: &Range<usize>,
        cache: &KvCache,
        edits: &Edits,
    ) -> Result<usize> {
        self.check_rows(batch, input)?;
        self.check_layers(layers, input)?;
        let planned = self.plan.iter().map(|(point, _)| point);
        let edited = edits.rules().iter().map(|rule| rule.point);
        for point in planned.chain(edited) {
            self.check_point(point, layers, input)?;
        }
        edits.rules().iter().try_for_each(check_kind)?;
        let last = self.last(layers, cache);
        let switch = self.model.info().frequency_switch;
        let mut run = layers.clone().take_while(|layer| *layer < last);
        run.try_for_each(|layer| cache.check(layer, batch, switch))?;
        Ok(last)
    }

    fn run(
        &self,
        input: Input<'_>,
        layers: Range<usize>,
        cache: &mut KvCache,
        pass: &mut Pass<'_>,
    ) -> Result<()> {
        let decoder = &self.model.decoder;
        let resid = match input {
            Input::Tokens => {
                let embeddings = decoder.embed(pass)?;
                self.enter(embeddings, pass)?
            }
            Input::Embeddings(embeddings) => self.enter(embeddings.clone(), pass)?,
            Input::Residual(resid) => resid.clone(),
        };
        if let Some(results) = cache.step(self.model, &self.plan, &layers, &resid, pass)? {
            layers.into_iter().try_for_each(|layer| pass.end_layer(layer))?;
            let batch = pass.batch;
            return results.iter().try_for_each(|(point, tensor)| {
                pass.record(*point, &hooks::Activation::new(tensor, batch))
            });
        }
        let end = layers.end;
        let resid = decoder.layers(layers, resid, cache, pass)?;
        if !self.plan.wants_end() {
            return Ok(());
        }
        decoder.end(&pass.bring(end, resid)?, pass)
    }

    /// The residual stream before the first layer.
    fn enter(&self, embeddings: Tensor, pass: &mut Pass<'_>) -> Result<Tensor> {
        let embeddings = pass.point(HookPoint::EMBED, pass.bring(0, embeddings)?)?;
        Ok(match self.model.decoder.embed_positions(pass)? {
            Some(positions) => add(&embeddings, &pass.point(HookPoint::POS_EMBED, positions)?)?,
            None => embeddings,
        })
    }

    /// One past the last layer that must run.
    fn last(&self, layers: &Range<usize>, cache: &KvCache) -> usize {
        if self.plan.wants_end() || cache.keeps() {
            return layers.end;
        }
        self.plan.last_layer().map_or(layers.start, |layer| (layer + 1).max(layers.start))
    }

    fn check_rows(&self, batch: &Batch, input: Input<'_>) -> Result<()> {
        let info = self.model.info();
        for (row, tokens) in batch.rows().iter().enumerate() {
            let length = tokens.offset.saturating_add(tokens.tokens.len());
            if length > info.n_ctx {
                return Err(Error::TooLong { row, length, n_ctx: info.n_ctx });
            }
            let unknown = |id: &u32| *id as usize >= info.d_vocab;
            if let Input::Tokens = input
                && let Some(position) = tokens.tokens.iter().position(unknown)
            {
                let (id, d_vocab) = (tokens.tokens[position], info.d_vocab);
                return Err(Error::TokenId { row, position, id, d_vocab });
            }
        }
        if let Input::Embeddings(tensor) | Input::Residual(tensor) = input {
            let expected = vec![batch.rows().len(), batch.padded_len(), info.d_model];
            if tensor.dims() != expected {
                return Err(Error::InputShape { expected, found: tensor.dims().to_vec() });
            }
        }
        Ok(())
    }

    fn check_layers(&self, layers: &Range<usize>, input: Input<'_>) -> Result<()> {
        let n_layers = self.model.info().n_layers();
        let problem = if layers.start > layers.end {
            "the first lies behind the last"
        } else if layers.end > n_layers {
            "there are not so many"
        } else if layers.start > 0 && !matches!(input, Input::Residual(_)) {
            "tokens and embeddings enter at layer 0"
        } else {
            return Ok(());
        };
        Err(Error::LayerRange { start: layers.start, end: layers.end, n_layers, problem })
    }

    /// Whether these layers, entered by this input, pass a point.
    fn check_point(&self, point: HookPoint, layers: &Range<usize>, input: Input<'_>) -> Result<()> {
        let passed = match (point.layer_index(), point.site()) {
            (Some(layer), _) => layers.contains(&layer),
            (None, Site::LnFinalNormalized | Site::Logits) => {
                layers.end == self.model.info().n_layers()
            }
            (None, _) => !matches!(input, Input::Residual(_)),
        };
        if passed {
            return Ok(());
        }
        Err(Error::OutsideRange { point, start: layers.start, end: layers.end })
    }
}

/// Passes of one session, one after the other. On devices a pass is told to them, and while they
/// compute it the sink is handed what the one before it gave. On the CPU each pass ends before the
/// next one begins, as under [`Session::forward`].
#[derive(Debug)]
pub struct Flow<'s> {
    session: &'s Session<'s>,
    /// `None`: on the CPU.
    under_way: Option<UnderWay>,
}

impl Flow<'_> {
    /// As [`Session::forward`], but on devices the sink may be told of the batch, and all that the
    /// pass gives, by later calls; it is told in the same order. With a cache that keeps, whose next
    /// step writes over what this one gives, it is told all at once.
    ///
    /// # Errors
    ///
    /// As [`Session::forward`]; the sink's may be about an earlier batch. Of a batch whose pass
    /// failed the sink is told no more, of those before it by
    /// [`hand_over`](Self::hand_over).
    pub fn forward(
        &mut self,
        batch: &Batch,
        input: Input<'_>,
        layers: Range<usize>,
        cache: &mut KvCache,
        edits: &Edits,
        sink: &mut dyn ActivationSink,
    ) -> Result<()> {
        let Session { model, plan } = self.session;
        let last = self.session.check(batch, input, &layers, cache, edits)?;
        match &mut self.under_way {
            Some(under_way) => under_way.begin(batch),
            None => sink.begin(batch)?,
        }
        if !plan.is_empty() || cache.keeps() {
            let _turn = model.home().map(Home::turn);
            let away = model.home().zip(self.under_way.as_mut());
            let away = away.map(|(home, under_way)| Away { home, under_way });
            let mut pass = Pass::new(&model.info().layers, plan, edits, batch, sink, away);
            let done = self.session.run(input, layers.start..last, cache, &mut pass);
            if let Err(error) = done {
                self.under_way.iter_mut().for_each(UnderWay::give_up);
                return Err(model.explained(error));
            }
        }
        match &mut self.under_way {
            Some(under_way) => under_way.end(),
            None => sink.end_batch()?,
        }
        if cache.keeps() { self.hand_over(0, sink) } else { Ok(()) }
    }

    /// Tells the sink all that there is to tell of batches, except of so many last ones.
    ///
    /// # Errors
    ///
    /// The sink's, and those of a device that computes what is to be handed over.
    pub fn hand_over(&mut self, except: usize, sink: &mut dyn ActivationSink) -> Result<()> {
        let Some(under_way) = &mut self.under_way else { return Ok(()) };
        // What is let go is let go on the devices' streams, where another pass may be captured.
        let _turn = self.session.model.home().map(Home::turn);
        while under_way.batches() > except {
            let handed = under_way.hand_over(sink);
            handed.map_err(|error| self.session.model.explained(error))?;
        }
        Ok(())
    }
}

impl Drop for Flow<'_> {
    fn drop(&mut self) {
        if let (Some(home), Some(under_way)) = (self.session.model.home(), self.under_way.take()) {
            let _turn = home.turn();
            if let Some(outbox) = under_way.into_outbox() {
                home.put_back(outbox);
            }
        }
    }
}

/// Refuses the kinds of edits that the layers do not make.
fn check_kind(rule: &hooks::Rule) -> Result<()> {
    match rule.edit {
        Edit::Zero | Edit::Scale(_) | Edit::Add(_) | Edit::Set(_) => Ok(()),
        Edit::KnockOut { .. } | Edit::DropExperts(_) | Edit::ForceExperts(_) => {
            Err(Error::Hooks(hooks::Error::Edit {
                edit: rule.edit.name(),
                point: rule.point,
                reason: "this version makes zero, scale, add and set only",
            }))
        }
    }
}
