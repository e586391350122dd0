//! Verdicts whose answer is known, and what scipy and its kin find.

use kernels::random::SplitMix64;

use super::*;

/// Numbers for made-up texts.
struct Made(SplitMix64);

impl Made {
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.0.next_symmetric()).sum::<f64>() / 2.
    }

    /// Texts of which positives are longer by this factor and likelier by this much.
    fn texts(&mut self, n: usize, longer: f64, likelier: f64) -> Vec<Text> {
        let mut text = |i: usize| {
            let positive = i % 2 == 1;
            let shift = f64::from(u8::from(positive));
            let tokens = 120. * (0.25 * self.normal() + longer.ln() * shift).exp();
            let mean_log_probability = -2. + 0.3 * self.normal() + likelier * shift;
            Text { positive, tokens: tokens as usize, mean_log_probability, group: i }
        };
        (0..n).map(&mut text).collect()
    }

    /// A grid of metrics that are a function of a text, and noise.
    fn grid(
        &mut self,
        texts: &[Text],
        n: usize,
        of: impl Fn(&Text) -> f64,
        noise: f64,
    ) -> Vec<Vec<Option<f64>>> {
        let mut cell = || texts.iter().map(|t| Some(of(t) + noise * self.normal())).collect();
        (0..n).map(|_| cell()).collect()
    }
}

fn findings(judgement: &Judgement) -> Vec<Finding> {
    judgement.cells.iter().flatten().map(Verdict::finding).collect()
}

#[test]
fn an_effect_of_the_label_separates() {
    let mut made = Made(SplitMix64::new(1));
    let texts = made.texts(200, 1., 0.);
    let grid = made.grid(&texts, 20, |t| 1.2 * f64::from(u8::from(t.positive)), 1.);
    let found = Study::new(&texts).unwrap().judge(&grid);
    assert_eq!(findings(&found), [Finding::Separates; 20]);
    assert_eq!(found.overall().unwrap().1, Finding::Separates);
    let nested = found.nested.unwrap();
    assert!(nested.balanced_accuracy > 0.65, "{nested:?}");
    assert!(found.nested_length.unwrap().balanced_accuracy < 0.6);
}

#[test]
fn a_metric_of_length_is_explained_by_length() {
    for (seed, curve) in [
        (2, (|n| 0.01 * n) as fn(f64) -> f64),
        (3, |n| 3. * n.ln()),
        (4, |n| 100. / n),
        (5, |n| -(0.01 * n).powi(2)),
        (6, |n| (n / 40.).sin()),
    ] {
        let mut made = Made(SplitMix64::new(seed));
        let texts = made.texts(300, 1.6, 0.);
        let grid = made.grid(&texts, 40, |t| curve(t.tokens as f64), 0.05);
        let found = Study::new(&texts).unwrap().judge(&grid);
        let explained = Finding::Explained { by: Confounder::Length, overlap: true };
        for cell in found.cells.iter().flatten() {
            assert_ne!(cell.finding(), Finding::Separates, "{seed}: {cell:?}");
        }
        if seed < 5 {
            assert_eq!(found.overall().unwrap().1, explained, "{seed}");
        }
    }
}

#[test]
fn lengths_that_never_meet_cannot_be_told_from_the_label() {
    let mut made = Made(SplitMix64::new(6));
    let texts = made.texts(100, 9., 0.);
    // The label itself: nothing about these texts can show that it is not length.
    let grid = made.grid(&texts, 3, |t| 5. * f64::from(u8::from(t.positive)), 1.);
    let found = Study::new(&texts).unwrap().judge(&grid);
    let expected = Finding::Explained { by: Confounder::Length, overlap: false };
    assert_eq!(findings(&found), [expected; 3]);
    assert!(found.length.auroc > 0.99);
}

#[test]
fn likelihood_explains_what_follows_it() {
    let mut made = Made(SplitMix64::new(7));
    let texts = made.texts(300, 1., 0.4);
    let grid = made.grid(&texts, 10, |t| t.mean_log_probability, 0.05);
    let found = Study::new(&texts).unwrap().judge(&grid);
    let expected = Finding::Explained { by: Confounder::LogProbability, overlap: true };
    assert_eq!(findings(&found), [expected; 10]);
}

#[test]
fn noise_separates_in_no_more_than_a_twentieth_of_grids() {
    let mut made = Made(SplitMix64::new(8));
    let (mut own, mut separates) = (0, 0);
    for _ in 0..40 {
        let texts = made.texts(60, 1.3, 0.1);
        let grid = made.grid(&texts, 12, |_| 0., 1.);
        let found = findings(&Study::new(&texts).unwrap().judge(&grid));
        own += usize::from(found.iter().any(|f| *f != Finding::NotSignificant));
        separates += usize::from(found.contains(&Finding::Separates));
    }
    // Two of 40 expected at most, standard deviation 1.4.
    assert!(own <= 6 && separates <= 1, "{own} {separates}");
}

#[test]
fn the_same_texts_give_the_same_bits() {
    let mut made = Made(SplitMix64::new(9));
    let texts = made.texts(60, 1.2, 0.1);
    let grid = made.grid(&texts, 5, |t| t.tokens as f64, 20.);
    let judge = || Study::new(&texts).unwrap().judge(&grid);
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(judge(), one.install(judge));
}

#[test]
fn pairs_are_compared_within_themselves() {
    let mut made = Made(SplitMix64::new(10));
    let mut texts = made.texts(80, 1., 0.);
    for pair in texts.chunks_mut(2) {
        (pair[1].group, pair[1].tokens) = (pair[0].group, pair[0].tokens);
    }
    // Pairs differ much from each other, and little but always within.
    let common: Vec<f64> = (0..40).map(|_| made.normal()).collect();
    let value = |i: usize| common[i / 2] + 0.05 * f64::from(u8::from(texts[i].positive));
    let grid = [(0..80).map(|i| Some(value(i))).collect::<Vec<_>>()];
    let found = Study::new(&texts).unwrap().judge(&grid);
    let verdict = found.cells[0].unwrap();
    let within = verdict.within().unwrap();
    assert_eq!((within.metric.estimate.auroc, within.length_auroc), (1., 0.5));
    assert!(within.metric.p < 1e-8 && verdict.own().p > 0.5);
    assert_eq!(verdict.finding(), Finding::NotSignificant);
}

#[test]
fn what_cannot_be_judged_says_why() {
    let mut made = Made(SplitMix64::new(11));
    let texts = made.texts(40, 1., 0.);
    let few = Study::new(&texts[..18]).err().unwrap();
    assert_eq!(few, Unfit::TooFew { negatives: 9, positives: 9, least: LEAST_GROUPS });
    let mut together = texts.clone();
    together.iter_mut().for_each(|text| text.group %= 5);
    assert!(matches!(Study::new(&together), Err(Unfit::TooFew { .. })));
    let mut wrong = texts.clone();
    wrong[3].mean_log_probability = f64::NAN;
    assert!(matches!(Study::new(&wrong), Err(Unfit::LogProbability { text: 3, .. })));

    let study = Study::new(&texts).unwrap();
    let noise = made.grid(&texts, 1, |_| 0., 1.).remove(0);
    let mut holes = noise.clone();
    holes.iter_mut().take(22).for_each(|value| *value = None);
    let mut one_hole = noise.clone();
    one_hole[5] = Some(f64::INFINITY);
    let found = study.judge(&[vec![Some(1.); 40], holes, vec![], one_hole, noise]);
    assert_eq!(found.cells[0], Err(Unjudged::Constant));
    assert_eq!(found.cells[1], Err(Unjudged::TooFew { negatives: 9, positives: 9 }));
    assert_eq!(found.cells[2], Err(Unjudged::TooFew { negatives: 0, positives: 0 }));
    assert_eq!(found.cells[3].unwrap().n_positives(), 19);
    assert_eq!((found.tested, found.chosen), (2, Some(4)));
    assert_eq!(study.judge(&[]).overall(), None);
}

/// The golden statistics of `tests/golden/verdicts.py`.
#[test]
fn statistics_are_those_of_scipy_and_scikit_learn() {
    use serde_json::Value;

    let golden: Value =
        serde_json::from_str(include_str!("../../../../tests/golden/verdicts.json")).unwrap();
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    let close = |what: &str, got: f64, expected: &Value| {
        let expected = expected.as_f64().unwrap();
        // Both sides round differently, a p-value by some 1e-14 of itself.
        let tolerance = 1e-10 * expected.abs().max(1e-3);
        assert!((got - expected).abs() <= tolerance, "{what}: {got:e} {expected:e}");
    };
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 6);
    for case in cases {
        let values = numbers(&case["values"]);
        let labels: Vec<bool> =
            case["labels"].as_array().unwrap().iter().map(|v| v.as_bool().unwrap()).collect();
        let of = |label: bool| -> Vec<f64> {
            let with = values.iter().zip(&labels).filter(|(_, l)| **l == label);
            with.map(|(v, _)| *v).collect()
        };
        let (a, b) = (of(true), of(false));
        let test = rank::mann_whitney(&a, &b).unwrap();
        close("auroc", test.auroc, &case["auroc"]);
        close("p", test.p, &case["p"]);
        let exact = case["method"] == "exact";
        assert_eq!(test.method, if exact { Method::Exact } else { Method::Normal });
        close("d", rank::cohens_d(&a, &b).unwrap(), &case["cohens_d"]);
        let some: Vec<Option<f64>> = values.iter().copied().map(Some).collect();
        let columns: Vec<Vec<f64>> =
            case["columns"].as_array().unwrap().iter().map(numbers).collect();
        let r = control::r_squared(&some, &columns[0]).unwrap();
        close("R²", r, &case["r_squared"]);
        let folds: Vec<Option<usize>> =
            numbers(&case["folds"]).into_iter().map(|f| Some(f as usize)).collect();
        let left = control::residuals(&some, &columns, &folds, 4);
        for (got, expected) in left.iter().zip(case["residuals"].as_array().unwrap()) {
            let difference = (got.unwrap() - expected.as_f64().unwrap()).abs();
            assert!(difference < 1e-9, "{got:?} {expected}");
        }
        let bins: Vec<u64> = numbers(&case["bins"]).into_iter().map(|b| b as u64).collect();
        let (_, p) = control::stratified(&some, &labels, &bins);
        close("stratified p", p, &case["stratified_p"]);
    }
    let p: Vec<Option<f64>> = numbers(&golden["holm"]["p"]).into_iter().map(Some).collect();
    for (got, expected) in
        rank::holm(&p).iter().zip(golden["holm"]["corrected"].as_array().unwrap())
    {
        close("Holm", got.unwrap(), expected);
    }
}
