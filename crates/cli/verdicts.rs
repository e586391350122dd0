//! Verdicts and scores as text: what a metric tells stands in the same row as what
//! explains it.

use std::io::{Result, Write};

use engine::{
    CellVerdict, ControlNumbers, Estimate, Judged, NestedNumbers, Scores, Verdicts, human,
};

use crate::print::{Print, number, shorten, table};

/// Cells that are printed.
const CELLS: usize = 10;
/// Texts whose scores are printed.
const SCORES: usize = 20;

/// Two digits, which is what intervals of such sets are worth.
fn digits(value: f64) -> String {
    format!("{value:.2}")
}

fn interval(low: Option<f64>, high: Option<f64>) -> String {
    match (low, high) {
        (Some(low), Some(high)) => format!(" [{}, {}]", digits(low), digits(high)),
        _ => String::new(),
    }
}

fn estimate(estimate: &Estimate) -> String {
    format!("{}{}", digits(estimate.auroc), interval(estimate.low, estimate.high))
}

fn nested(nested: Option<&NestedNumbers>) -> String {
    nested.map_or_else(
        || "none".to_owned(),
        |n| format!("{}{}", digits(n.balanced_accuracy), interval(n.low, n.high)),
    )
}

/// What a confounder alone tells; below it, what is left of the metric after
/// regression, and among like texts.
fn control(control: &ControlNumbers) -> String {
    let like = control.matched.map_or("–".to_owned(), |m| digits(m.tested.estimate.auroc));
    let left = digits(control.residual.estimate.auroc);
    format!("{}\n{left}, {like}", digits(control.alone.auroc))
}

/// Judged cells, those that say most first.
fn ranked(verdicts: &Verdicts) -> Vec<(&CellVerdict, &Judged)> {
    let judged = verdicts.cells.iter().filter_map(|cell| Some((cell, cell.judged.as_ref()?)));
    let mut ranked: Vec<_> = judged.collect();
    let weight = |cell: &CellVerdict, judged: &Judged| {
        let rank = match cell.finding.as_str() {
            "separates" => 2.,
            "not_significant" => 0.,
            _ => 1.,
        };
        rank + (judged.own.estimate.auroc - 0.5).abs()
    };
    ranked.sort_by(|a, b| weight(b.0, b.1).total_cmp(&weight(a.0, a.1)));
    ranked
}

/// A cell's preset, with its Laplacian where the preset has several.
fn preset(verdicts: &Verdicts, cell: &CellVerdict) -> String {
    let other = |c: &CellVerdict| c.preset == cell.preset && c.laplacian != cell.laplacian;
    match &cell.laplacian {
        Some(laplacian) if verdicts.cells.iter().any(other) => {
            format!("{}, {laplacian}", cell.preset)
        }
        _ => cell.preset.clone(),
    }
}

fn cells(verdicts: &Verdicts, out: &mut dyn Write) -> Result<()> {
    let ranked = ranked(verdicts);
    let groups = ranked.iter().any(|(_, judged)| judged.within.is_some());
    let mut head = vec!["layer", "metric\npreset", "AUROC\n[95 %]", "Holm p\nCohen's d"];
    head.extend(groups.then_some("within\ngroups"));
    head.extend(["length\nleft, alike", "log-prob.\nleft, alike", "verdict"]);
    let rows = ranked.iter().take(CELLS).map(|(cell, judged)| {
        let within = judged.within.map_or("–".to_owned(), |w| digits(w.tested.estimate.auroc));
        let Estimate { auroc, low, high } = judged.own.estimate;
        let d = judged.cohens_d.map_or("–".to_owned(), digits);
        let mut row = vec![
            cell.layer.to_string(),
            format!("{}\n{}", cell.metric.replace('_', " "), preset(verdicts, cell)),
            format!("{}\n{}", digits(auroc), interval(low, high).trim()),
            format!("{}\n{d}", number(Some(judged.own.holm_p))),
        ];
        row.extend(groups.then_some(within));
        row.extend([control(&judged.length), control(&judged.log_probability)]);
        row.push(cell.verdict.clone());
        row
    });
    writeln!(out, "{}", table(&head, rows))?;
    writeln!(
        out,
        "length, log-prob.: their own AUROC; below it what is left of the metric's when they are\n\
         regressed out, and among texts alike in them (– too few are)"
    )
}

impl Print for Verdicts {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        let labels = &self.labels;
        writeln!(
            out,
            "{}: {} × `{}` (scores higher above ½) against {} × `{}`",
            labels.field,
            labels.n_positive,
            shorten(&labels.positive),
            labels.n_negative,
            shorten(&labels.negative),
        )?;
        if let Some(field) = &labels.groups {
            writeln!(out, "{} by {field}", human::count(labels.n_groups as u64, "group"))?;
        }
        let shown = self.tested.min(CELLS);
        writeln!(
            out,
            "{shown} of {} tested cells, preset × layer × metric; Holm's correction is over all of them",
            self.tested
        )?;
        cells(self, out)?;
        let counts: Vec<String> = self
            .findings
            .iter()
            .map(|(name, n)| format!("{} {n}", name.replace('_', " ")))
            .collect();
        writeln!(out, "all cells: {}", counts.join(", "))?;
        writeln!(
            out,
            "alone: token count {}, mean log-probability {}",
            estimate(&self.length),
            estimate(&self.log_probability)
        )?;
        writeln!(
            out,
            "threshold on left-out texts, balanced accuracy: best cell {},\n  \
             token count {}, mean log-probability {}",
            nested(self.nested.as_ref()),
            nested(self.nested_length.as_ref()),
            nested(self.nested_log_probability.as_ref())
        )?;
        paragraph(&format!("Verdict: {}.", self.verdict), out)
    }
}

/// Words in lines of at most 96 characters.
fn paragraph(text: &str, out: &mut dyn Write) -> Result<()> {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > 96 {
            writeln!(out, "{line}")?;
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    writeln!(out, "{line}")
}

impl Print for Scores {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        let threshold = &self.threshold;
        let side = if threshold.direction == "low" { "≤" } else { ">" };
        writeln!(
            out,
            "`{}` if {} of layer {} under {} {side} {}",
            shorten(&threshold.positive),
            threshold.metric,
            threshold.layer,
            threshold.preset,
            number(Some(threshold.at)),
        )?;
        let accuracy = threshold.balanced_accuracy.map_or("unknown".to_owned(), digits);
        paragraph(
            &format!(
                "set on {} texts; balanced accuracy on left-out ones {accuracy}; the verdict there was: {}",
                threshold.n_positive + threshold.n_negative,
                threshold.verdict
            ),
            out,
        )?;
        let rows = self.scores.iter().take(SCORES).map(|score| {
            vec![
                shorten(&score.prompt),
                score.n_tokens.to_string(),
                number(Some(score.value)),
                number(Some(score.margin)),
                shorten(&score.called),
            ]
        });
        writeln!(out, "{}", table(&["prompt", "tokens", "value", "margin", "called"], rows))?;
        if self.scores.len() > SCORES {
            writeln!(out, "… and {} more in the table scores", self.scores.len() - SCORES)?;
        }
        writeln!(
            out,
            "{} of {} called `{}`",
            self.called_positive,
            human::count(self.scores.len() as u64, "text"),
            shorten(&threshold.positive)
        )?;
        if self.unusual_lengths > 0 {
            writeln!(
                out,
                "Beware: {} shorter or longer than the {} to {} tokens of the texts that it was set on",
                human::count(self.unusual_lengths as u64, "text"),
                threshold.least_tokens,
                threshold.most_tokens
            )?;
        }
        writeln!(out)?;
        self.outcome.print(out)
    }
}
