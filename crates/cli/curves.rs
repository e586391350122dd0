//! Curves over prefixes as lines of text.

use std::io::{Result, Write};

use engine::PrefixSummary;

use crate::print::{bands, number};

/// Characters of a curve.
const WIDTH: usize = 24;
/// Least to greatest.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// What is drawn, where a preset has it.
const METRICS: [&str; 5] =
    ["fiedler", "smoothness", "hfer", "heat_2", "spectral_entropy_normalized"];

/// A table for each preset and Laplacian: a row for each layer, a curve for each metric.
pub fn prefixes(layers: &[PrefixSummary], out: &mut dyn Write) -> Result<()> {
    let same = |a: &PrefixSummary, b: &PrefixSummary| {
        (&a.preset, &a.laplacian) == (&b.preset, &b.laplacian)
    };
    for group in layers.chunk_by(same) {
        let Some(first) = group.first() else { continue };
        let (Some(shortest), Some(longest)) = (first.prefixes.first(), first.prefixes.last())
        else {
            continue;
        };
        writeln!(
            out,
            "Prefixes of {shortest} to {longest} tokens, mean over heads; preset {}, {} Laplacian; \
             value at the first, curve from least to greatest, value at the last",
            first.preset, first.laplacian
        )?;
        let metrics: Vec<&str> = METRICS
            .into_iter()
            .filter(|metric| {
                group.iter().any(|layer| layer.means[*metric].iter().any(Option::is_some))
            })
            .collect();
        let titles: Vec<String> = metrics.iter().map(|metric| metric.replace('_', " ")).collect();
        let head: Vec<&str> =
            std::iter::once("layer").chain(titles.iter().map(String::as_str)).collect();
        let row = |layer: &PrefixSummary| {
            let curves = metrics.iter().map(|metric| curve(&layer.means[*metric]));
            std::iter::once(layer.layer.to_string()).chain(curves).collect()
        };
        let rows: Vec<Vec<String>> = group.iter().map(row).collect();
        bands(&head, &rows, |name| name == "layer", out)?;
        writeln!(out)?;
    }
    Ok(())
}

/// `0.52 ▁▃▅█ 0.81`: of many values, as many as there is room for, evenly spread.
fn curve(values: &[Option<f64>]) -> String {
    let known = || values.iter().flatten();
    let (Some(first), Some(last)) = (known().next(), known().next_back()) else {
        return "–".to_owned();
    };
    let (low, high) = known().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(*value), high.max(*value))
    });
    let n = values.len().min(WIDTH);
    let bars = (0..n).map(|i| match values[i * (values.len() - 1) / (n - 1).max(1)] {
        None => ' ',
        Some(value) => {
            let height = if high > low { (value - low) / (high - low) } else { 0.5 };
            BARS[((height * BARS.len() as f64) as usize).min(BARS.len() - 1)]
        }
    });
    format!("{} {} {}", number(Some(*first)), bars.collect::<String>(), number(Some(*last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_run_from_least_to_greatest() {
        assert_eq!(curve(&[Some(1.0), None, Some(3.0), Some(2.0)]), "1.000 ▁ █▅ 2.000");
        assert_eq!(curve(&[Some(0.5), Some(0.5)]), "0.5000 ▅▅ 0.5000");
        assert_eq!(curve(&[None]), "–");
        assert_eq!(curve(&[]), "–");
        let many: Vec<Option<f64>> = (0..100).map(|i| Some(f64::from(i))).collect();
        assert_eq!(curve(&many).split(' ').nth(1).map(|bars| bars.chars().count()), Some(WIDTH));
        assert!(curve(&many).ends_with("█ 99.00"));
    }
}
