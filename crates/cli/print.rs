//! Results as text: tables that fit a terminal, and a line on what to do next.

use std::io::{Result, Write};

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};
use engine::{
    ChatTemplate, Check, Contents, Cuda, Demo, Divergence, Doctor, Explained, Families,
    FunctionalMean, FunctionalValues, Measured, Outcome, PointDifference, Points, Report,
    RoutingSummary, Rows, Shown, Sizes, SpectralSummary, TensorValues, Windows, human,
};
use serde_json::Value;

use crate::curves::prefixes;

/// A result that can be shown to a person.
pub trait Print {
    fn print(&self, out: &mut dyn Write) -> Result<()>;
}

/// A rule under the head, and nothing else.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::new('─', '─', '─', '─'));
/// Width of tables in characters where there is no terminal to ask.
const WIDTH: u16 = 100;
/// Characters of a cell.
const CELL: usize = 40;

/// A table with text columns on the left and numbers on the right.
pub fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE).set_content_arrangement(ContentArrangement::Dynamic).set_header(head);
    if !table.is_tty() {
        table.set_width(WIDTH);
    }
    let mut numeric = vec![true; head.len()];
    for row in rows {
        for (numeric, cell) in numeric.iter_mut().zip(&row) {
            let number = cell.trim_end_matches('%').parse::<f64>().is_ok();
            *numeric &= number || cell == "–" || cell.is_empty();
        }
        table.add_row(row);
    }
    for (column, numeric) in table.column_iter_mut().zip(numeric) {
        if numeric {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Tables of some of the columns each, as many as fit; every one begins with the
/// columns that name a row.
pub fn bands(
    head: &[&str],
    rows: &[Vec<String>],
    is_key: impl Fn(&str) -> bool,
    out: &mut dyn Write,
) -> Result<()> {
    let (keys, values): (Vec<usize>, Vec<usize>) =
        (0..head.len()).partition(|column| is_key(head[*column]));
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        3 + cells.max().unwrap_or(0).max(head[column].chars().count())
    };
    let keys_width: usize = keys.iter().copied().map(width).sum();
    let mut bands: Vec<Vec<usize>> = vec![vec![]];
    let mut used = keys_width;
    for column in values {
        let more = width(column);
        if used + more > usize::from(WIDTH) && bands.last().is_some_and(|b| !b.is_empty()) {
            bands.push(vec![]);
            used = keys_width;
        }
        used += more;
        bands.last_mut().into_iter().for_each(|band| band.push(column));
    }
    for band in bands {
        let columns: Vec<usize> = keys.iter().copied().chain(band).collect();
        let head: Vec<&str> = columns.iter().map(|c| head[*c]).collect();
        let row = |row: &Vec<String>| columns.iter().map(|c| row[*c].clone()).collect();
        writeln!(out, "{}", table(&head, rows.iter().map(row)))?;
    }
    Ok(())
}

/// Four significant digits, or a dash where there is no value.
pub fn number(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(0.) => "0".to_owned(),
        Some(v) if v.abs() >= 1e5 || v.abs() < 1e-3 => format!("{v:.2e}"),
        Some(v) => {
            let digits = 3 - (v.abs().log10().floor() as i32).clamp(-3, 3);
            format!("{v:.*}", digits.max(0) as usize)
        }
    }
}

pub fn shorten(text: &str) -> String {
    let one_line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match one_line.char_indices().nth(CELL) {
        None => one_line,
        Some((end, _)) => format!("{}…", &one_line[..end]),
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => shorten(text),
        Value::Number(n) if n.is_f64() => number(n.as_f64()),
        Value::Array(values) => {
            let some: Vec<_> = values.iter().take(3).map(cell).collect();
            let rest = if values.len() > 3 { ", …" } else { "" };
            format!("[{}{rest}]", some.join(", "))
        }
        other => other.to_string(),
    }
}

impl Print for Outcome {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        let rows: Vec<_> =
            self.tables.iter().map(|(name, rows)| format!("{name} {rows}")).collect();
        writeln!(out, "{} ({})", self.model, self.family)?;
        write!(
            out,
            "{}, {}",
            human::count(self.prompts, "prompt"),
            human::count(self.tokens, "token")
        )?;
        if self.resumed_prompts > 0 {
            write!(out, "; {} finished before", human::count(self.resumed_prompts, "prompt"))?;
        }
        if self.cut_prompts > 0 {
            write!(out, "; {} cut", human::count(self.cut_prompts, "prompt"))?;
        }
        writeln!(out)?;
        if self.tokens_run > 0 {
            let rate = self.tokens_run as f64 / self.seconds;
            writeln!(out, "{:.2} s, {rate:.0} tokens/s", self.seconds)?;
        }
        writeln!(out, "rows: {}", rows.join(", "))?;
        if self.tensors > 0 {
            writeln!(out, "tensors: {}", self.tensors)?;
        }
        let (run, size) = (self.run.display(), human::bytes(self.bytes));
        writeln!(out, "{run}: {size}; see `eigenlens show {run}`")
    }
}

impl Print for Report {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        spectral(&self.spectral, out)?;
        prefixes(&self.prefixes, out)?;
        routing(&self.routing, out)?;
        self.outcome.print(out)
    }
}

fn spectral(layers: &[SpectralSummary], out: &mut dyn Write) -> Result<()> {
    let same = |a: &SpectralSummary, b: &SpectralSummary| {
        (&a.preset, &a.laplacian) == (&b.preset, &b.laplacian)
    };
    for group in layers.chunk_by(same) {
        let Some(first) = group.first() else {
            continue;
        };
        writeln!(
            out,
            "Attention graphs, mean over heads; preset {}, {} Laplacian; means over {}",
            first.preset,
            first.laplacian,
            human::count(first.prompts, "prompt")
        )?;
        let metrics: Vec<&str> = first
            .means
            .iter()
            .filter(|(metric, _)| group.iter().any(|layer| layer.means[*metric].is_some()))
            .map(|(metric, _)| *metric)
            .collect();
        let titles: Vec<String> = metrics.iter().map(|metric| metric.replace('_', " ")).collect();
        let head: Vec<&str> =
            std::iter::once("layer").chain(titles.iter().map(String::as_str)).collect();
        let row = |layer: &SpectralSummary| {
            let values = metrics.iter().map(|metric| number(layer.means[metric]));
            std::iter::once(layer.layer.to_string()).chain(values).collect()
        };
        let rows: Vec<Vec<String>> = group.iter().map(row).collect();
        bands(&head, &rows, |name| name == "layer", out)?;
        let sum = |count: fn(&SpectralSummary) -> u64| group.iter().map(count).sum::<u64>();
        let (unconverged, disagreeing) = (sum(|l| l.unconverged), sum(|l| l.disagreeing));
        if let Some(caveat) = &first.caveat {
            writeln!(out, "Beware: {caveat}")?;
        }
        if unconverged + disagreeing > 0 {
            writeln!(
                out,
                "Beware: {unconverged} graphs did not converge, {disagreeing} depend on the start; \
                 see the columns converged and fiedler_seeds_agree"
            )?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn routing(layers: &[RoutingSummary], out: &mut dyn Write) -> Result<()> {
    let Some(first) = layers.first() else {
        return Ok(());
    };
    writeln!(out, "Routing of {} tokens", first.n_tokens)?;
    let columns = [
        ("load_entropy", "load entropy / ln N"),
        ("effective_experts", "effective experts"),
        ("max_violation", "max violation"),
        ("dead_fraction", "dead"),
        ("token_entropy", "token entropy"),
        ("margin", "margin"),
        ("switch_loss", "switch loss"),
    ];
    let head: Vec<&str> =
        std::iter::once("layer").chain(columns.iter().map(|(_, title)| *title)).collect();
    let rows = layers.iter().map(|layer| {
        let measure = |name: &str| number(layer.measures.get(name).copied().flatten());
        let values = columns.iter().map(|(name, _)| measure(name));
        std::iter::once(layer.layer.to_string()).chain(values).collect()
    });
    writeln!(out, "{}", table(&head, rows))?;
    if first.load.len() <= 16 {
        writeln!(out, "Load of each expert, in per cent of slots")?;
        let names: Vec<String> = (0..first.load.len()).map(|expert| expert.to_string()).collect();
        let head: Vec<&str> =
            std::iter::once("layer").chain(names.iter().map(String::as_str)).collect();
        let rows = layers.iter().map(|layer| {
            let loads = layer.load.iter().map(|load| format!("{:.1}", 100. * load));
            std::iter::once(layer.layer.to_string()).chain(loads).collect()
        });
        writeln!(out, "{}", table(&head, rows))?;
    }
    writeln!(out)
}

impl Print for Demo {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        spectral(&self.report.spectral, out)?;
        routing(&self.report.routing, out)?;
        writeln!(
            out,
            "Valid against invalid derivations, {} pairs of equal length; mean over heads",
            self.pairs
        )?;
        let rows = self.contrasts.iter().map(|c| {
            vec![
                c.layer.to_string(),
                c.preset.to_owned(),
                c.metric.to_owned(),
                number(Some(c.valid_mean)),
                number(Some(c.invalid_mean)),
                number(c.cohens_d),
                number(Some(c.auroc)),
                format!("{} – {}", number(Some(c.auroc_low)), number(Some(c.auroc_high))),
            ]
        });
        let head = [
            "layer",
            "preset",
            "metric",
            "valid",
            "invalid",
            "Cohen's d",
            "AUROC",
            "95 % of label swaps",
        ];
        writeln!(out, "{}", table(&head, rows))?;
        writeln!(out, "AUROC of the number of tokens alone: {}", number(Some(self.length_auroc)))?;
        writeln!(out, "{}\n", self.verdict)?;
        self.report.outcome.print(out)
    }
}

impl Print for Shown {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        match self {
            Shown::Contents(contents) => contents.print(out),
            Shown::Rows(rows) => rows.print(out),
            Shown::Tensor(tensor) => tensor.print(out),
            Shown::Verdicts(verdicts) => verdicts.print(out),
        }
    }
}

impl Print for Contents {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        let state = if self.complete { "finished" } else { "not finished" };
        writeln!(
            out,
            "{} of {} prompts, {state}; written by version {}",
            self.finished_prompts, self.prompts, self.engine_version
        )?;
        writeln!(out, "command: {}", self.command.join(" "))?;
        let rows = self.tables.iter().map(|t| {
            let columns: Vec<_> = t.info.columns.iter().map(|c| c.name.as_str()).collect();
            vec![t.info.name.clone(), t.rows.to_string(), columns.join(", ")]
        });
        writeln!(out, "{}", table(&["table", "rows", "columns after prompt"], rows))?;
        if self.verdicts {
            writeln!(out, "verdicts: see `eigenlens show RUN verdicts`")?;
        }
        if self.n_tensors > 0 {
            writeln!(out, "{} tensors:", self.n_tensors)?;
            for key in &self.tensors {
                writeln!(out, "  {key}")?;
            }
            if self.n_tensors > self.tensors.len() {
                writeln!(out, "  … and {} more", self.n_tensors - self.tensors.len())?;
            }
        }
        Ok(())
    }
}

impl Print for Rows {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        let keys = ["prompt", "preset", "layer", "head", "expert", "position"];
        let is_key = |name: &str| keys.contains(&name);
        let head: Vec<&str> = self.columns.iter().map(String::as_str).collect();
        let rows: Vec<Vec<String>> =
            self.rows.iter().map(|row| row.iter().map(cell).collect()).collect();
        bands(&head, &rows, is_key, out)?;
        if self.rows.len() as u64 == self.matching {
            return writeln!(out, "{}", human::count(self.matching, "row"));
        }
        writeln!(out, "{} of {} rows; more with --rows N", self.rows.len(), self.matching)
    }
}

impl Print for FunctionalValues {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        let arguments = self.arguments.iter().map(|(name, value)| format!("; {name} {value}"));
        writeln!(out, "{}{}", self.about, arguments.collect::<String>())?;
        // Of mean and heads the mean alone is shown; --heads leaves the heads.
        let has_mean = self.means.iter().any(|mean| mean.head.is_none());
        let shown: Vec<_> = self.means.iter().filter(|m| m.head.is_none() == has_mean).collect();
        for group in shown.chunk_by(|a, b| (&a.preset, &a.laplacian) == (&b.preset, &b.laplacian)) {
            let prompts = group.iter().map(|mean| mean.prompts).max().unwrap_or(0);
            writeln!(
                out,
                "preset {}, {} Laplacian, {}; means over {}",
                group[0].preset,
                group[0].laplacian,
                if has_mean { "mean over heads" } else { "heads" },
                human::count(prompts as u64, "prompt")
            )?;
            functional_table(group, &self.grid, out)?;
        }
        let values = || shown.iter().flat_map(|mean| &mean.values);
        let is_coarse = |m: &&Measured| m.truncation > m.error.max(1e-9 * m.value.abs());
        let (coarse, all) = (values().filter(is_coarse).count(), values().count());
        if coarse > 0 {
            writeln!(
                out,
                "Beware: for {coarse} of {all} values the steps count more than the probes; \
                 keep more of them with --probe-steps"
            )?;
        }
        let nulls: Vec<_> = self.graphs.iter().filter_map(|graph| graph.null.as_ref()).collect();
        match nulls.first() {
            Some(first) => {
                let graphs = human::count(nulls.len() as u64, "graph");
                writeln!(out, "no value of {graphs}, the first because: {first}")
            }
            None => Ok(()),
        }
    }
}

/// A row per layer, or per layer and head.
fn functional_table(means: &[&FunctionalMean], grid: &[f64], out: &mut dyn Write) -> Result<()> {
    let names = |mean: &FunctionalMean| {
        let head = mean.head.map(|head| head.to_string());
        std::iter::once(mean.layer.to_string()).chain(head).collect::<Vec<_>>()
    };
    let mut head = vec!["layer".to_owned()];
    head.extend(means.iter().any(|mean| mean.head.is_some()).then(|| "head".to_owned()));
    let rows: Vec<Vec<String>> = if grid.is_empty() {
        head.extend(["value", "± error", "truncation", "spread"].map(str::to_owned));
        let row = |mean: &&FunctionalMean| {
            let measured = mean.values.first();
            let value = |f: fn(&Measured) -> f64| number(measured.map(f));
            let values = [value(|m| m.value), value(|m| m.error), value(|m| m.truncation)];
            let spread = number(mean.spread.first().copied());
            names(mean).into_iter().chain(values).chain([spread]).collect()
        };
        means.iter().map(row).collect()
    } else {
        head.extend(grid.iter().map(|x| format!("at {}", number(Some(*x)))));
        let cell = |mean: &FunctionalMean, k: usize| match mean.values.get(k) {
            Some(m) => format!("{} ± {}", number(Some(m.value)), number(Some(m.error))),
            None => number(None),
        };
        let row = |mean: &&FunctionalMean| {
            names(mean).into_iter().chain((0..grid.len()).map(|k| cell(mean, k))).collect()
        };
        means.iter().map(row).collect()
    };
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    bands(&head, &rows, |name| ["layer", "head"].contains(&name), out)
}

impl Print for TensorValues {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        writeln!(out, "{}  {} {:?}", self.key, self.dtype, self.shape)?;
        let (min, max, mean) = (number(self.min), number(self.max), number(self.mean));
        writeln!(out, "min {min}, max {max}, mean {mean}; {} not finite", self.n_not_finite)?;
        let values: Vec<String> = self.values.iter().map(|v| number(Some(*v))).collect();
        for line in values.chunks(8) {
            writeln!(out, "  {}", line.join("  "))?;
        }
        let count: usize = self.shape.iter().product();
        if count > self.values.len() {
            writeln!(out, "  … and {} more values", count - self.values.len())?;
        }
        Ok(())
    }
}

impl Print for Families {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        let rows = [
            ("families (model_type)", self.families.join(", ")),
            ("GGUF architectures", self.gguf_architectures.join(", ")),
            ("GGUF tensor types", self.gguf_types.join(", ")),
            ("safetensors types", self.safetensors_types.join(", ")),
            ("built-in models", self.built_in.join(", ")),
        ];
        facts(&rows, out)?;
        writeln!(
            out,
            "`eigenlens models MODEL` explains a folder, a .gguf file or a built-in model"
        )
    }
}

/// Columns of a list of facts before its values begin.
const NAMES: usize = 28;
/// Columns of a line.
const LINE: usize = 80;

/// Names with their values, which go on under themselves where they are long.
fn facts(rows: &[(&str, String)], out: &mut dyn Write) -> Result<()> {
    for (name, value) in rows {
        let mut line = format!("  {name:<0$}", NAMES - 2);
        let mut empty = true;
        for word in value.split_whitespace() {
            let width = line.chars().count() + usize::from(!empty) + word.chars().count();
            if !empty && width > LINE {
                writeln!(out, "{line}")?;
                (line, empty) = (" ".repeat(NAMES), true);
            }
            if !empty {
                line.push(' ');
            }
            line.push_str(word);
            empty = false;
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// What a configuration means, as rows of facts.
fn size_rows(sizes: &Sizes) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        ("family", sizes.family.clone()),
        ("layers", sizes.n_layers.to_string()),
        ("d_model", sizes.d_model.to_string()),
        ("query / key-value heads", format!("{} / {}", sizes.n_heads, sizes.n_kv_heads)),
        ("d_head", sizes.d_head.to_string()),
    ];
    rows.extend(sizes.d_mlp.map(|d_mlp| ("d_mlp", d_mlp.to_string())));
    if let (Some(n_experts), Some(k)) = (sizes.n_experts, sizes.k) {
        let width = sizes.d_expert.map_or_else(String::new, |width| format!(", {width} wide"));
        rows.push(("experts", format!("{n_experts}, {k} per token{width}")));
    }
    let tied = if sizes.tied_embeddings { ", embedding and unembedding tied" } else { "" };
    rows.push(("vocabulary", format!("{}{tied}", sizes.d_vocab)));
    rows.push(("context", format!("{} tokens", sizes.n_ctx)));
    rows.push(("positions", sizes.positions.clone()));
    let of_all = |layers: usize| format!("{layers} of {} layers", sizes.n_layers);
    if sizes.layers_without_rotary > 0 {
        rows.push(("without rotary", of_all(sizes.layers_without_rotary)));
    }
    let window = |windows: &Windows| {
        let tokens = windows.window?;
        Some(format!("{tokens} tokens in {}", of_all(windows.layers)))
    };
    let windows: Vec<String> = sizes.windows.iter().filter_map(window).collect();
    if !windows.is_empty() {
        rows.push(("sliding window", windows.join(", ")));
    }
    if sizes.parallel_layers > 0 {
        rows.push(("attention beside MLP", of_all(sizes.parallel_layers)));
    }
    let cap = |cap: f64| cap.to_string();
    rows.extend(sizes.attention_soft_cap.map(|c| ("soft cap of scores", cap(c))));
    rows.extend(sizes.logit_soft_cap.map(|c| ("soft cap of logits", cap(c))));
    rows
}

impl Print for Explained {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        writeln!(out, "{}", self.model)?;
        let mut rows = Vec::new();
        if let Some(refusal) = &self.refusal {
            rows.push(("not loadable", refusal.to_string()));
        }
        match &self.sizes {
            Some(sizes) => rows.extend(size_rows(sizes)),
            None => rows.extend(self.claims.iter().map(|(key, v)| (key.as_str(), v.clone()))),
        }
        if let Some(weights) = &self.weights {
            let kind = |(kind, tensors): (&String, &usize)| format!("{kind} × {tensors}");
            let stored: Vec<_> = weights.stored_as.iter().map(kind).collect();
            let n = weights.n_parameters;
            let parameters = match n {
                0..100_000 => n.to_string(),
                _ => format!("{:.1} million", n as f64 / 1e6),
            };
            rows.push(("parameters", parameters));
            let bytes = human::bytes(weights.file_bytes);
            rows.push(("weights in files", format!("{bytes} ({})", stored.join(", "))));
            if weights.unread_tensors > 0 {
                let n = weights.unread_tensors as u64;
                let tensors = human::count(n, "tensor");
                rows.push(("not read", format!("{tensors} of images, or constants")));
            }
        }
        let tokenizer = match (self.tokenizer, &self.tokenizer_problem) {
            (Some(n), _) => format!("{n} entries"),
            (None, Some(problem)) => format!("cannot be used: {problem}"),
            (None, None) => "none".to_owned(),
        };
        if self.refusal.is_none() || tokenizer != "none" {
            rows.push(("tokenizer", tokenizer));
        }
        if self.tokenizer.is_some() {
            let around = match self.special_tokens.as_slice() {
                [] => "nothing".to_owned(),
                tokens => tokens.iter().map(|token| shorten(token)).collect::<Vec<_>>().join(" "),
            };
            rows.push(("put around a text", around));
            let template = match self.chat_template {
                ChatTemplate::Present => "present",
                ChatTemplate::Absent => "none",
                ChatTemplate::Unusable => "cannot be used",
            };
            rows.push(("chat template", template.to_owned()));
        }
        if !self.unread_files.is_empty() {
            let some = self.unread_files.iter().take(12).map(String::as_str);
            let more = self.unread_files.len().saturating_sub(12);
            let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
            rows.push(("files not read", format!("{}{rest}", some.collect::<Vec<_>>().join(", "))));
        }
        facts(&rows, out)?;
        if let Some(memory) = &self.memory {
            writeln!(
                out,
                "\nMemory for {} positions at once; `eigenlens models --help` has the formula",
                memory.context
            )?;
            let uses = memory.uses.iter().map(|u| {
                let bytes = [u.weights, u.kv_cache, u.activations, u.total].map(human::bytes);
                let names = [u.device.to_owned(), u.weights_as.to_owned()];
                names.into_iter().chain(bytes).collect()
            });
            let head = ["device", "weights as", "weights", "cache", "activations", "in all"];
            writeln!(out, "{}", table(&head, uses))?;
            writeln!(out, "all logits, where wanted: {} more", human::bytes(memory.all_logits))?;
        }
        if !self.hook_points.is_empty() {
            let points = self.hook_points.iter().map(|point| {
                let axes = point.axes.replacen("[batch, ", "[", 1);
                vec![point.name.to_owned(), axes, point.layers.to_string()]
            });
            writeln!(out, "\n{}", table(&["hook point", "shape after batch", "layers"], points))?;
        }
        Ok(())
    }
}

impl Print for Check {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        let agreement = format!("{:.2} % of positions", 100. * self.top_agreement);
        let texts = human::count(self.texts as u64, "text");
        let rows = [
            ("model", self.model.clone()),
            ("reference", self.reference.clone()),
            ("text", format!("{texts}, {} tokens", self.tokens)),
            ("same token most likely", agreement),
            ("largest logit difference", number(Some(self.largest_logit_difference))),
            ("perplexity", number(Some(self.perplexity))),
            ("reference's perplexity", number(Some(self.reference_perplexity))),
        ];
        facts(&rows, out)?;
        let row = |name: &str, found: &Divergence| {
            let place = match found.max {
                0. => "–".to_owned(),
                _ => format!("{}, position {}", shorten(&found.max_prompt), found.max_position),
            };
            let values = [found.mean, found.median, found.max].map(|value| number(Some(value)));
            std::iter::once(name.to_owned()).chain(values).chain([place]).collect()
        };
        let rows = [
            row("KL(reference‖model)", &self.kl_reference_model),
            row("KL(model‖reference)", &self.kl_model_reference),
        ];
        let head = ["nats per token", "mean", "median", "max", "in text"];
        writeln!(out, "\n{}", table(&head, rows))?;
        if let Some(points) = &self.points {
            points.print(out)?;
        }
        facts(&[("verdict", self.verdict.clone())], out)
    }
}

impl Print for Points {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        let size = |difference: Option<f64>| {
            difference.map_or_else(|| "not finite".to_owned(), |size| format!("{size:.1e}"))
        };
        let row = |found: &PointDifference| {
            let layer = found.layer.map_or_else(String::new, |layer| layer.to_string());
            vec![found.point.clone(), size(found.difference), layer]
        };
        let head = ["hook point", "largest difference", "in layer"];
        writeln!(out, "\n{}", table(&head, self.differences.iter().map(row)))?;
        let largest = self.largest().map_or_else(String::new, |found| {
            format!("{} at {}", size(found.difference), found.point)
        });
        let tokens = human::count(self.tokens as u64, "token");
        let mut rows = vec![
            (
                "device",
                format!("{} in {}, beside the cpu in f32, {tokens}", self.device, self.dtype),
            ),
            ("largest difference", largest),
            ("tolerance", format!("{:.1e}", self.tolerance)),
        ];
        if let Some(other) = &self.other_experts {
            let tokens = human::count(other.tokens as u64, "token");
            rows.push((
                "other experts",
                format!(
                    "of {tokens} in layer {}, whose probabilities differ by at most {:.1e}; what \
                     comes behind is not compared",
                    other.layer, other.margin
                ),
            ));
        }
        facts(&rows, out)?;
        writeln!(out)
    }
}

impl Print for Doctor {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        let unknown = || "unknown".to_owned();
        let memory = self.memory.map_or_else(unknown, |(total, available)| {
            format!("{}, {} available", human::bytes(total), human::bytes(available))
        });
        let simd = if self.simd.is_empty() { "baseline".to_owned() } else { self.simd.join(", ") };
        let rows = [
            ("version", self.version.to_owned()),
            ("platform", self.platform.clone()),
            ("threads", self.threads.to_string()),
            ("cores", self.cores.map_or_else(unknown, |cores| cores.to_string())),
            ("vector instructions", simd),
            ("memory", memory),
            ("devices", self.devices.join(", ")),
            ("families", self.families.join(", ")),
            ("built-in model", if self.built_in_model { "readable" } else { "damaged" }.to_owned()),
        ];
        for (name, value) in rows {
            writeln!(out, "{name:<24}{value}")?;
        }
        print_cuda(&self.cuda, out)?;
        for (name, about) in &self.analyses {
            writeln!(out, "{:<24}{about}", format!("analysis {name}"))?;
        }
        Ok(())
    }
}

/// What there is for a run on a GPU, and what is missing, with its cure.
fn print_cuda(cuda: &Cuda, out: &mut dyn Write) -> Result<()> {
    let built = cuda.built_for.as_ref().map_or_else(
        || "not in this build; what one with CUDA would need here:".to_owned(),
        |capability| format!("built for GPUs of compute capability {capability}"),
    );
    writeln!(out, "{:<24}{built}", "cuda")?;
    let driver = cuda.driver.as_deref().unwrap_or("none");
    writeln!(out, "{:<24}{driver}", "  newest of the driver")?;
    for library in &cuda.libraries {
        let state = match (&library.missing, library.cure) {
            (Some(missing), cure) => format!("{missing}; {}", cure.unwrap_or_default()),
            (None, _) => "found".to_owned(),
        };
        writeln!(out, "{:<24}{state}", format!("  {}", library.file))?;
    }
    for gpu in &cuda.gpus {
        let memory = format!("{} of {} free", human::bytes(gpu.free), human::bytes(gpu.total));
        let other = if gpu.fits { "" } else { ", which this build is not for" };
        let state = format!("{}, capability {}{other}, {memory}", gpu.name, gpu.capability);
        writeln!(out, "{:<24}{state}", format!("  {}", gpu.device))?;
    }
    cuda.refusal.iter().try_for_each(|refusal| writeln!(out, "{:<24}{refusal}", "  gpus"))
}
