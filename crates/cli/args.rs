//! The command line's words.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use engine::{Date, DeviceChoice, Grid, Positions, Selection};

/// Opens up transformers while they run: captures attention and router
/// activations at named hook points and measures them.
#[derive(Parser)]
#[command(name = "eigenlens", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "\
Examples:
  eigenlens demo
  eigenlens spectral --model SmolLM2-135M-Instruct.Q4_1.gguf --prompts texts.jsonl --out runs/first
  eigenlens capture --model ./my-model --prompt 'Two plus two is' --hook 'blocks.*.attn.hook_pattern' --out runs/raw
  eigenlens show runs/first spectral

Exit codes: 0 done, 2 bad usage or input, 3 model or file not to be had, 4 device or memory, 1 anything else.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub shared: Shared,
}

/// Options of every command.
#[derive(Args)]
pub struct Shared {
    /// Print one JSON document to standard output instead of text.
    #[arg(long, global = true)]
    pub json: bool,
    /// Show no progress.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Bound every thread pool [default: all cores].
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<std::num::NonZeroUsize>,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run the built-in tiny Mixtral on built-in derivations: capture, spectra, routing.
    #[command(after_help = "Examples:\n  eigenlens demo\n  eigenlens demo --out runs/again --json")]
    Demo(DemoArgs),
    /// Write activations at chosen hook points to a run folder.
    #[command(after_help = "\
Examples:
  eigenlens capture --model ./my-model --prompts texts.jsonl --hook logits --positions last --out runs/last
  eigenlens capture --model ./my-model --token-ids ids.json --hook 'blocks.*.attn.hook_pattern' --heads 0-3 --out runs/raw
  eigenlens capture --model model.gguf --chat --prompt 'Name a colour.' --hook logits --positions last --out runs/chat

`*` stands for any run of characters between two dots. `eigenlens models MODEL` lists a model's hook points.")]
    Capture(CaptureArgs),
    /// Measure attention graphs: Laplacian spectra and per-head statistics.
    #[command(after_help = "\
Examples:
  eigenlens spectral --model tiny-mixtral --prompt '3 + 4 = 7' --out runs/one
  eigenlens spectral --model model.gguf --prompts texts.jsonl --preset controlled,paper --out runs/both
  eigenlens spectral --model model.gguf --prompts texts.jsonl --prefix-step 32 --out runs/curves
  eigenlens spectral --model model.gguf --prompts texts.jsonl --quadrature --out runs/probed
  eigenlens spectral --model model.gguf --prompts texts.jsonl --exact --keep eigenvalues,fiedler-vectors --out runs/dense
  eigenlens spectral --model model.gguf --chat --date 2026-11-23 --prompts talks.jsonl --out runs/talks
  eigenlens spectral --model model.gguf --prompts proofs.jsonl --labels valid --groups proof --out runs/proofs
  eigenlens spectral --model model.gguf --prompts new.jsonl --score-only runs/proofs --out runs/new

Presets:
  controlled  symmetric-normalized Laplacian; first token dropped; signal centred and scaled to unit rows
  paper       combinatorial Laplacian; every token; raw residual stream; dense spectra
  library-0.3 to compare with numbers that the paper's library published: symmetric-normalized
              Laplacian; every token; raw residual stream, of the last layer after the final norm;
              of more than 50 modes HFER and entropy take the 25 lowest and 25 highest alone")]
    Spectral(SpectralArgs),
    /// Measure how a mixture-of-experts model routes its tokens.
    #[command(
        after_help = "Example:\n  eigenlens routing --model tiny-mixtral --prompts texts.jsonl --out runs/routing"
    )]
    Routing(RoutingArgs),
    /// List a run folder, or print one of its tables or tensors.
    #[command(after_help = "\
Examples:
  eigenlens show runs/first
  eigenlens show runs/first spectral --prompt 3 --rows 20
  eigenlens show runs/raw 0/blocks.2.attn.hook_pattern
  eigenlens show runs/probed --functional heat-capacity --beta 2
  eigenlens show runs/probed --functional density --width 0.05 --grid 0:2:21 --prompt 3

Functionals come from the coefficients that `eigenlens spectral --quadrature` keeps, as means
over prompts, with the standard error of the probes; --json has every graph. `truncation` is
what a quarter fewer steps change, in practice more than what the steps leave out.")]
    Show(ShowArgs),
    /// List what can be loaded; explain a folder or file; or check a model's predictions.
    #[command(after_help = "\
Examples:
  eigenlens models
  eigenlens models SmolLM2-135M-Instruct.Q4_1.gguf
  eigenlens models ./my-model --context 8192 --json
  eigenlens models model.Q4_1.gguf --check
  eigenlens models model.Q4_1.gguf --check --reference ./original --prompts texts.jsonl
  eigenlens models ./my-model --check --device cuda --dtype f32

What cannot be loaded is explained as far as it can be read, and the exit code is 3.

Memory, with b bytes a number, P parameters and T positions (--context):
  weights      b P; quantized blocks as they are stored, on the CPU 20 to 36 bytes
               for 32 of them
  cache        2 b T times the sum of n_kv_heads d_head over layers
  activations  b (T w + d_vocab), w the widest moment of a layer: with d = d_model,
               a = n_heads d_head, c = n_kv_heads d_head the larger of
               3 d + 3 a + 5 c and 5 d + 3 d_mlp, in mixtures 5 d + k (d + 3 d_expert)
The cache is kept where a text is continued. On top come what is captured, the work
buffers of products (some MB a thread), the program and its tokenizer (some 30 MB for
50,000 entries). While weights are loaded their file is mapped, too, which counts as
resident and can be given back.

--check runs a text through the model as it is stored and through its reference: the
same model in f32, or --reference, on the CPU. It prints the divergence KL of their
next-token distributions in nats a token, how often both find the same token most likely,
and the perplexity of each. With --device cuda the model runs there, and every hook point
of the text's first 32 tokens is compared with the CPU's, too: the largest difference over
the largest number of each, which rounding explains up to 1e-3 in f32, 2e-2 in f16 and
1.5e-1 in bf16.")]
    Models(ModelsArgs),
    /// Tell what this machine and this build can do.
    #[command(after_help = "Examples:\n  eigenlens doctor\n  eigenlens doctor --json")]
    Doctor,
}

#[derive(Args)]
pub struct DemoArgs {
    /// The run folder.
    #[arg(long, value_name = "RUN", default_value = "runs/demo")]
    pub out: PathBuf,
}

/// Which model, and how it is run.
#[derive(Args)]
pub struct ModelArgs {
    /// A model folder, a .gguf file, a built-in name (tiny-mixtral), or a hub id (org/name, org/name@revision, org/name:file.gguf).
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// Where to run: auto (the GPU with the most free memory, else the CPU), cpu, cuda, cuda:N, or
    /// several as cuda:0,cuda:1.
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Best)]
    pub device: DeviceChoice,
    /// Weights in memory. On the CPU models compute in f32 whatever their weights are; f32 is faster
    /// and larger than quantized weights, and gives the same results.
    #[arg(long, value_enum, default_value_t = Dtype::Auto)]
    pub dtype: Dtype,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Dtype {
    /// f32 on the CPU, bf16 on a GPU, but quantized weights stay quantized.
    Auto,
    /// f32; quantized weights are dequantized once.
    F32,
    /// bfloat16, on a GPU.
    Bf16,
    /// IEEE half precision, on a GPU.
    F16,
}

/// What the model is run on.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct PromptArgs {
    /// A prompt; may be given several times.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Vec<String>,
    /// Prompts from a file (.txt: one per line; .jsonl, .parquet: `text` and optional `id` and
    /// `response`, which follows the text as what a model answered; .jsonl with --chat:
    /// `messages`, too), or `-` for standard input.
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Token ids from a JSON file: a list, or a list of lists. Needs no tokenizer.
    #[arg(long, value_name = "FILE")]
    pub token_ids: Option<PathBuf>,
}

#[derive(Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub prompts: PromptArgs,
    /// Write each prompt as the model's chat template does, with the beginning of an answer behind
    /// it: a text is one message of the user, `messages` are taken as they are.
    #[arg(long, conflicts_with_all = ["token_ids", "no_bos"])]
    pub chat: bool,
    /// The day that a chat template prints, such as 2026-11-23; asked for only where one is printed.
    #[arg(long, value_name = "DATE", requires = "chat")]
    pub date: Option<Date>,
    /// Put no special tokens (BOS, EOS) around a text, whatever the tokenizer says.
    #[arg(long)]
    pub no_bos: bool,
    /// What special tokens written in a prompt, such as <|im_end|>, are.
    #[arg(long, value_enum, default_value_t = Special::Parse)]
    pub special: Special,
    /// Cut longer prompts to their first N tokens.
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// The run folder; one that holds a part of the same run is gone on with.
    #[arg(long, value_name = "RUN")]
    pub out: PathBuf,
    /// Layers, such as 0,5-9.
    #[arg(long, default_value = "all")]
    pub layers: Selection,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Special {
    /// Those tokens.
    Parse,
    /// Plain text like any other.
    Plain,
}

#[derive(Args)]
pub struct CaptureArgs {
    #[command(flatten)]
    pub run: RunArgs,
    /// A hook point; may be given several times, and hold `*`.
    #[arg(long = "hook", value_name = "NAME", required = true)]
    pub hooks: Vec<String>,
    /// Heads, such as 0,5-9.
    #[arg(long, default_value = "all")]
    pub heads: Selection,
    /// Positions, such as last,0-16.
    #[arg(long, default_value = "all")]
    pub positions: Positions,
    /// Stored type of floating-point tensors.
    #[arg(long, value_enum, default_value_t = Stored::F32)]
    pub store: Stored,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Stored {
    /// Single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// In what whole spectra are solved.
#[derive(Clone, Copy, ValueEnum)]
pub enum Precision {
    /// Single precision.
    F32,
    /// Double precision.
    F64,
}

#[derive(Args)]
pub struct SpectralArgs {
    #[command(flatten)]
    pub run: RunArgs,
    /// Heads, such as 0,5-9; the mean always runs over all heads.
    #[arg(long, default_value = "all")]
    pub heads: Selection,
    /// One or several presets.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "controlled")]
    pub preset: Vec<Preset>,
    /// One or several Laplacians, each with its rows under every preset [default: the preset's].
    #[arg(long, value_enum, value_delimiter = ',')]
    pub laplacian: Vec<Laplacian>,
    /// Dense spectra: HFER and entropies for every graph, under `controlled`, too. Solved in f32
    /// with both ends certified in f64; with `--exact=f64` in f64 throughout, in about the same
    /// time at some hundred tokens and a sixth more at a thousand.
    /// Presets that are dense anyway follow the same choice; without it they are solved in f64.
    #[arg(long, value_enum, value_name = "PRECISION", num_args = 0..=1, require_equals = true, default_missing_value = "f32")]
    pub exact: Option<Precision>,
    /// The hidden score of every layer: mean log eigenvalue of the hidden states' Gram matrix.
    #[arg(long)]
    pub hidden_score: bool,
    /// How graphs are held: in memory, or made anew from queries and keys at every product.
    #[arg(long, value_enum, default_value_t = Graph::Auto)]
    pub graph: Graph,
    /// Measure the first N tokens of each prompt, too, for these N: rows in the table `prefixes`.
    #[arg(long, value_name = "N", value_delimiter = ',', conflicts_with = "prefix_step")]
    pub prefixes: Vec<std::num::NonZeroUsize>,
    /// The same for every multiple of N.
    #[arg(long, value_name = "N")]
    pub prefix_step: Option<std::num::NonZeroUsize>,
    /// Send random probes through each layer's mean over heads, or through every head, too, and
    /// keep their coefficients: `eigenlens show RUN --functional` has density of states, heat
    /// capacity and more from them, with error bars. A graph costs as many products as probes
    /// have steps, 1,024 by default, and 16 kB.
    #[arg(long, value_enum, value_name = "GRAPHS", num_args = 0..=1, require_equals = true, default_missing_value = "mean")]
    pub quadrature: Option<Probed>,
    /// Random probes of each graph, 8 to 1024; errors fall with the root of their number [default: 16].
    #[arg(long, value_name = "N", requires = "quadrature")]
    pub probes: Option<usize>,
    /// Lanczos steps of each probe, 2 to 1024; they resolve the spectrum's width over their number [default: 64].
    #[arg(long, value_name = "N", requires = "quadrature")]
    pub probe_steps: Option<usize>,
    /// Keep these of each graph, as lists in tables of the same names: eigenvalues where the
    /// solver is dense, and the vector of the Fiedler value.
    #[arg(long, value_enum, value_name = "PART", value_delimiter = ',')]
    pub keep: Vec<Kept>,
    #[command(flatten)]
    pub verdicts: VerdictArgs,
}

/// What verdicts are about.
#[derive(Args)]
pub struct VerdictArgs {
    /// Judge whether metrics tell the two values of this field apart (a field of .jsonl lines, a
    /// column of .parquet files), beside what length and log-probability tell.
    #[arg(long, value_name = "FIELD")]
    pub labels: Option<String>,
    /// The value that counts as 1 [default: the second in sorted order].
    #[arg(long, value_name = "VALUE", requires = "labels")]
    pub positive: Option<String>,
    /// Texts with the same value of this field belong together, such as a proof and its corrupted
    /// copy: they share folds and resamples.
    #[arg(long, value_name = "FIELD", requires = "labels")]
    pub groups: Option<String>,
    /// Apply the threshold that a run with --labels saved, and measure nothing else.
    #[arg(long, value_name = "RUN|FILE", conflicts_with_all = ["labels", "preset", "laplacian", "exact", "hidden_score", "layers", "heads", "graph", "prefixes", "prefix_step", "quadrature", "keep"])]
    pub score_only: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Graph {
    /// Stored where one layer's patterns, graphs and Gram matrices of the longest prompt take up to 4 GiB.
    Auto,
    /// Stored: fast; memory grows with the square of the length.
    Stored,
    /// Made anew: memory grows with the length alone. The mean over heads, and heads that --heads names.
    Recomputed,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Probed {
    /// The mean over heads.
    Mean,
    /// Every head that has rows, and the mean.
    Heads,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kept {
    /// Every eigenvalue.
    Eigenvalues,
    /// The eigenvector of the second-smallest eigenvalue.
    FiedlerVectors,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// Length-controlled.
    Controlled,
    /// As in the paper.
    Paper,
    /// As in version 0.3 of the paper's library.
    #[value(name = "library-0.3")]
    Library03,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Laplacian {
    /// D − W.
    Combinatorial,
    /// I − D^-½ W D^-½.
    SymmetricNormalized,
    /// I − D⁻¹W, with energies in its own inner product, weighted by degrees.
    RandomWalk,
}

#[derive(Args)]
pub struct RoutingArgs {
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Args)]
pub struct ShowArgs {
    /// The run folder.
    pub run: PathBuf,
    /// A table, or a tensor such as 0/blocks.2.attn.hook_pattern.
    pub item: Option<String>,
    /// Rows of one prompt only.
    #[arg(long, value_name = "ID")]
    pub prompt: Option<String>,
    /// Most rows to print.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub rows: usize,
    /// A functional of the spectra, from kept quadratures.
    #[arg(long, value_enum, value_name = "NAME", conflicts_with = "item")]
    pub functional: Option<Functional>,
    /// Inverse temperature of partition function, free energy and heat capacity [default: 1].
    #[arg(long, requires = "functional", allow_negative_numbers = true)]
    pub beta: Option<f64>,
    /// Time of the form factor [default: 1].
    #[arg(long, requires = "functional", allow_negative_numbers = true)]
    pub tau: Option<f64>,
    /// Standard deviation by which the density is smoothed [default: 0.1].
    #[arg(long, requires = "functional", allow_negative_numbers = true)]
    pub width: Option<f64>,
    /// Points of the density [default: 0:2:9].
    #[arg(
        long,
        value_name = "FROM:TO:POINTS",
        requires = "functional",
        allow_hyphen_values = true
    )]
    pub grid: Option<Grid>,
    /// With a functional, these heads and not the mean over heads, such as 0,5-9.
    #[arg(long, requires = "functional")]
    pub heads: Option<Selection>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Functional {
    /// Density of states.
    Density,
    /// Entropy of the eigenvalues' shares.
    EigenvalueEntropy,
    /// Partition function.
    PartitionFunction,
    /// Free energy per node.
    FreeEnergy,
    /// Heat capacity.
    HeatCapacity,
    /// Spectral form factor.
    FormFactor,
}

#[derive(Args)]
pub struct ModelsArgs {
    /// A model folder, a .gguf file, a built-in name, or a hub id (org/name, org/name@revision, org/name:file.gguf).
    pub model: Option<String>,
    /// Tokens for which memory is estimated [default: 2048, or the model's context if shorter].
    #[arg(long, value_name = "N", requires = "model", conflicts_with = "check")]
    pub context: Option<usize>,
    /// Compare the model's predictions with those of its reference.
    #[arg(long, requires = "model")]
    pub check: bool,
    #[command(flatten)]
    pub over: CheckArgs,
}

/// What a check compares, and over which text.
#[derive(Args)]
pub struct CheckArgs {
    /// Where the model runs, as for other commands; its reference is on the CPU.
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Best, requires = "check")]
    pub device: DeviceChoice,
    /// The model's weights in memory.
    #[arg(long, value_enum, default_value_t = Dtype::Auto, requires = "check")]
    pub dtype: Dtype,
    /// Compare with this checkpoint of the same vocabulary, not with the model itself in f32.
    #[arg(long, value_name = "MODEL", requires = "check")]
    pub reference: Option<String>,
    /// A text; may be given several times [default: a built-in text].
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, requires = "check", conflicts_with_all = ["prompts", "token_ids"])]
    pub prompt: Vec<String>,
    /// Texts from a file (.txt, .jsonl, .parquet), or `-` for standard input.
    #[arg(long, value_name = "FILE", requires = "check", conflicts_with = "token_ids")]
    pub prompts: Option<PathBuf>,
    /// Token ids from a JSON file. Needs no tokenizer.
    #[arg(long, value_name = "FILE", requires = "check")]
    pub token_ids: Option<PathBuf>,
    /// Put no special tokens (BOS, EOS) around a text, whatever the tokenizer says.
    #[arg(long, requires = "check")]
    pub no_bos: bool,
    /// Cut longer texts to their first N tokens.
    #[arg(long, value_name = "N", requires = "check")]
    pub max_tokens: Option<usize>,
}
