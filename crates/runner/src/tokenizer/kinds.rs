//! The rules by which byte-level tokenizers cut a text before merging.
//!
//! A GGUF file names its rule and leaves the rest out: the Unicode form that the
//! text is brought to, the cuts, whether a whole word that is a token needs no
//! merging. The table holds what the models' own `tokenizer.json` files say. Files
//! of one rule share a line.

use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

/// The Unicode form of a text before it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    AsWritten,
    /// Canonical composition.
    Composed,
}

/// One cut; a rule makes its cuts one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// At each match of a regular expression.
    At(&'static str),
    /// GPT-2's regular expression, after which bytes are spelled as characters.
    Gpt2,
    /// Around every digit.
    EachDigit,
    /// Around runs of digits.
    DigitRuns,
    /// Around runs of punctuation.
    PunctuationRuns,
}

/// What becomes of a cut-out stretch that is a token as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whole {
    /// It is merged like any other.
    Merge,
    /// It is that token.
    Keep,
}

/// Whether files of a rule begin a text with a BOS where they do not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bos {
    No,
    Yes,
}

/// A rule.
#[derive(Debug)]
pub(super) struct Kind {
    /// What `tokenizer.ggml.pre` calls it.
    names: &'static [&'static str],
    form: Form,
    cuts: &'static [Cut],
    pub(super) whole: Whole,
    pub(super) bos: Bos,
}

/// Letters with one character before them, numbers of one to three digits, runs
/// of other characters with the line ends behind them, white space.
const CL100K: Cut = Cut::At(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// As [`CL100K`], with single digits.
const QWEN2: Cut = Cut::At(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// As [`QWEN2`], with combining marks among the letters.
const QWEN35: Cut = Cut::At(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// Words cut where small letters end and capitals begin, contractions kept on.
const O200K: Cut = Cut::At(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// As [`O200K`], with single digits and without contractions.
const TEKKEN: Cut = Cut::At(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const BLOOM: Cut = Cut::At(r" ?[^(\s|.,!?…。，、।۔،)]+");
const LINE_END: Cut = Cut::At(r"[\r\n]");
/// Chinese, and what lies between it and Korean.
const HAN_AND_HANGUL: Cut = Cut::At(r"[一-龥ࠀ-一가-퟿]+");
const UP_TO_THREE_DIGITS: Cut = Cut::At(r"\p{N}{1,3}");
const HAN_AND_KANA: Cut = Cut::At(r"[一-龥぀-ゟ゠-ヿ]+");
const DEEPSEEK3: Cut = Cut::At(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
);
const SEED_CODER: Cut = Cut::At(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const BAILING: Cut = Cut::At(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
);

use Bos::{No, Yes};
use Form::{AsWritten, Composed};
use Whole::{Keep, Merge};

const fn kind(
    names: &'static [&'static str],
    form: Form,
    cuts: &'static [Cut],
    whole: Whole,
    bos: Bos,
) -> Kind {
    Kind { names, form, cuts, whole, bos }
}

/// Every rule that is built.
#[rustfmt::skip]
static KINDS: &[Kind] = &[
    kind(&["gpt-2", "default", "phi-2", "jais", "trillion", "exaone4", "granite-docling"], AsWritten, &[Cut::Gpt2], Merge, No),
    kind(&["mpt", "olmo"], Composed, &[Cut::Gpt2], Merge, No),
    kind(&["smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b"], AsWritten, &[Cut::EachDigit, Cut::Gpt2], Merge, No),
    kind(&["command-r"], Composed, &[Cut::EachDigit, Cut::Gpt2], Merge, No),
    kind(&["falcon"], AsWritten, &[Cut::PunctuationRuns, Cut::Gpt2, Cut::DigitRuns, Cut::At("[0-9][0-9][0-9]")], Merge, No),
    kind(&["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "lfm2"], AsWritten, &[CL100K], Keep, Yes),
    kind(&["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], AsWritten, &[CL100K], Merge, No),
    kind(&["qwen2", "deepseek-r1-qwen"], Composed, &[QWEN2], Merge, No),
    kind(&["qwen35"], Composed, &[QWEN35], Merge, No),
    kind(&["stablelm2", "megrez", "hunyuan", "grok-2", "solar-open"], AsWritten, &[QWEN2], Merge, No),
    kind(&["gpt-4o", "llama4", "kanana2", "minimax-m2"], AsWritten, &[O200K], Merge, No),
    kind(&["tekken"], AsWritten, &[TEKKEN], Keep, Yes),
    kind(&["deepseek-coder"], AsWritten, &[LINE_END, Cut::At(r"\s?\p{L}+"), Cut::At(r"\s?\p{P}+"), HAN_AND_HANGUL, Cut::EachDigit], Merge, No),
    kind(&["deepseek-v3", "hunyuan-dense"], AsWritten, &[UP_TO_THREE_DIGITS, HAN_AND_KANA, DEEPSEEK3], Merge, No),
    kind(&["bloom", "gpt3-finnish", "poro-chat"], AsWritten, &[BLOOM], Merge, No),
    kind(&["viking"], AsWritten, &[BLOOM, Cut::EachDigit], Merge, No),
    kind(&["seed-coder"], AsWritten, &[SEED_CODER], Merge, No),
    kind(&["bailingmoe", "bailingmoe2", "llada-moe"], AsWritten, &[BAILING], Merge, No),
];

/// The names of all rules, for messages.
pub(super) const NAMES: &str = "bailingmoe, bailingmoe2, bloom, chatglm-bpe, codeshell, command-r, dbrx, deepseek-coder, deepseek-r1-qwen, deepseek-v3, default, exaone, exaone4, falcon, falcon-h1, falcon3, glm4, gpt-2, gpt-4o, gpt3-finnish, granite-docling, grok-2, hunyuan, hunyuan-dense, jais, kanana2, lfm2, llada-moe, llama-bpe, llama-v3, llama3, llama4, megrez, minerva-7b, minimax-m2, mpt, olmo, phi-2, poro-chat, qwen2, qwen35, refact, seed-coder, smaug-bpe, smollm, solar-open, stablelm2, starcoder, tekken, trillion and viking";

impl Kind {
    /// The rule of this name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.names.contains(&name))
    }

    pub(super) fn normalizer(&self) -> Option<NFC> {
        match self.form {
            AsWritten => None,
            Composed => Some(NFC),
        }
    }

    pub(super) fn pre_tokenizer(&self) -> tokenizers::Result<PreTokenizerWrapper> {
        // Arguments: no space put before the text, offsets trimmed, own regular expression.
        let gpt2 = ByteLevel::new(false, true, true);
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        for cut in self.cuts {
            steps.push(match cut {
                Cut::At(pattern) => {
                    let pattern = SplitPattern::Regex((*pattern).to_owned());
                    Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into()
                }
                Cut::Gpt2 => gpt2.into(),
                Cut::EachDigit => Digits::new(true).into(),
                Cut::DigitRuns => Digits::new(false).into(),
                Cut::PunctuationRuns => Punctuation::new(SplitDelimiterBehavior::Contiguous).into(),
            });
        }
        if !self.cuts.contains(&Cut::Gpt2) {
            steps.push(ByteLevel::new(false, true, false).into());
        }
        Ok(Sequence::new(steps).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_table() {
        let mut names: Vec<_> = KINDS.iter().flat_map(|kind| kind.names).copied().collect();
        names.sort_unstable();
        let n = names.len();
        names.dedup();
        assert_eq!(names.len(), n, "a name stands twice");
        assert_eq!(NAMES.replace(" and ", ", "), names.join(", "));
    }

    #[test]
    fn every_rule_can_be_built() {
        for kind in KINDS {
            kind.pre_tokenizer().unwrap();
        }
    }
}
