//! SentencePiece's byte-pair encoding: pieces with scores, and no list of merges.
//!
//! Two neighbours merge if their concatenation is a piece; of all pairs the one
//! with the highest score goes first, and of equal scores the leftmost. The
//! library's own BPE cannot say the second: it ranks merges by their place in a
//! list, so that two ways to write one piece never tie. This is why the loop is
//! written here, as a model for the library's pipeline.
//!
//! # References
//!
//! Kudo and Richardson, SentencePiece, 2018, <https://arxiv.org/abs/1808.06226>.

use std::collections::{BinaryHeap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::models::bpe::BpeTrainer;
use tokenizers::{Model, Result, Token};

/// What a token of a vocabulary is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A piece of text.
    Normal,
    /// What stands for text that no piece covers.
    Unknown,
    /// A mark such as the beginning of a text.
    Control,
    /// A piece that is matched as a whole before anything merges.
    UserDefined,
    /// A piece that merging may pass through, but that never comes out.
    Unused,
    /// One byte of a character that is no piece.
    Byte,
}

impl Role {
    /// The role with this number in GGUF's `tokenizer.ggml.token_type`.
    pub(super) fn of(number: i64) -> Option<Self> {
        Some(match number {
            0 | 1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }

    fn merges(self) -> bool {
        matches!(self, Self::Normal | Self::UserDefined | Self::Unused)
    }
}

#[derive(Clone, Debug)]
struct Piece {
    text: Arc<str>,
    score: f32,
    role: Role,
}

/// A vocabulary with scores.
#[derive(Clone, Debug)]
pub(super) struct Pieces {
    pieces: Vec<Piece>,
    ids: HashMap<Arc<str>, u32>,
    /// The 256 byte tokens, if the vocabulary has them.
    bytes: Option<Vec<u32>>,
    unknown: Option<u32>,
    /// Bytes of the longest piece.
    longest: usize,
}

/// Byte tokens that are not all of `<0x00>` to `<0xFF>`.
#[derive(Debug)]
pub(super) struct BytesMissing;

impl Pieces {
    /// A vocabulary from texts, finite scores and roles of equal number, each
    /// text once; empty texts are never met in a text.
    pub(super) fn new(
        texts: &[&str],
        scores: &[f32],
        roles: &[Role],
        unknown: Option<u32>,
    ) -> std::result::Result<Self, BytesMissing> {
        let pieces: Vec<_> = texts
            .iter()
            .zip(scores.iter().zip(roles))
            // −0 and 0 are equal scores.
            .map(|(&text, (&score, &role))| Piece { text: text.into(), score: score + 0.0, role })
            .collect();
        let filled = pieces.iter().enumerate().filter(|(_, piece)| !piece.text.is_empty());
        let ids: HashMap<_, _> = filled.map(|(id, p)| (Arc::clone(&p.text), id as u32)).collect();
        let bytes = if roles.contains(&Role::Byte) {
            let byte = |byte: u8| ids.get(format!("<0x{byte:02X}>").as_str()).copied();
            let found: Option<Vec<u32>> = (0..=255).map(byte).collect();
            Some(found.ok_or(BytesMissing)?)
        } else {
            None
        };
        let longest = pieces.iter().map(|piece| piece.text.len()).max().unwrap_or(0);
        Ok(Self { pieces, ids, bytes, unknown, longest })
    }

    /// The piece with this text that merging may arrive at.
    fn piece(&self, text: &str) -> Option<(u32, &Piece)> {
        if text.len() > self.longest {
            return None;
        }
        let &id = self.ids.get(text)?;
        let piece = self.pieces.get(id as usize)?;
        piece.role.merges().then_some((id, piece))
    }
}

/// A stretch of the text; merging makes its right neighbour empty.
struct Symbol {
    range: Range<usize>,
    left: Option<usize>,
    right: Option<usize>,
}

/// Two neighbours that may merge.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both when they were looked at.
    bytes: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

/// A text while its pieces merge.
struct Merging<'a> {
    vocabulary: &'a Pieces,
    text: &'a str,
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Pair>,
    /// How pieces that must not come out were first put together.
    unused: HashMap<&'a str, (Range<usize>, Range<usize>)>,
}

impl<'a> Merging<'a> {
    fn new(vocabulary: &'a Pieces, text: &'a str) -> Self {
        let n = text.chars().count();
        let symbol = |(index, (start, c)): (usize, (usize, char))| Symbol {
            range: start..start + c.len_utf8(),
            left: index.checked_sub(1),
            right: (index + 1 < n).then_some(index + 1),
        };
        let symbols = text.char_indices().enumerate().map(symbol).collect();
        let (queue, unused) = (BinaryHeap::new(), HashMap::new());
        let mut merging = Self { vocabulary, text, symbols, queue, unused };
        for right in 1..n {
            merging.look_at(right - 1, right);
        }
        merging
    }

    fn look_at(&mut self, left: usize, right: usize) {
        let (first, second) = (&self.symbols[left].range, &self.symbols[right].range);
        let text = &self.text[first.start..second.end];
        if let Some((_, piece)) = self.vocabulary.piece(text) {
            if piece.role == Role::Unused {
                self.unused.entry(text).or_insert((first.clone(), second.clone()));
            }
            self.queue.push(Pair { score: piece.score, left, right, bytes: text.len() });
        }
    }

    fn run(&mut self) {
        while let Some(pair) = self.queue.pop() {
            let (left, right) = (&self.symbols[pair.left].range, &self.symbols[pair.right].range);
            // One of the two has merged with another since.
            if left.is_empty() || right.is_empty() || left.len() + right.len() != pair.bytes {
                continue;
            }
            let end = right.end;
            self.symbols[pair.left].range.end = end;
            self.symbols[pair.right].range = end..end;
            let next = self.symbols[pair.right].right;
            self.symbols[pair.left].right = next;
            if let Some(before) = self.symbols[pair.left].left {
                self.look_at(before, pair.left);
            }
            if let Some(next) = next {
                self.symbols[next].left = Some(pair.left);
                self.look_at(pair.left, next);
            }
        }
    }

    fn tokens(mut self) -> Result<Vec<Token>> {
        self.run();
        let mut tokens: Vec<Token> = Vec::new();
        let mut ranges = Vec::new();
        let mut at = (!self.symbols.is_empty()).then_some(0);
        while let Some(index) = at {
            ranges.push(self.symbols[index].range.clone());
            at = self.symbols[index].right;
            while let Some(range) = ranges.pop() {
                let text = &self.text[range.clone()];
                match (self.vocabulary.piece(text), self.unused.get(text)) {
                    (Some((_, piece)), Some((left, right))) if piece.role == Role::Unused => {
                        ranges.extend([right.clone(), left.clone()]);
                    }
                    (Some((id, piece)), _) => tokens.push(Token::new(
                        id,
                        piece.text.to_string(),
                        (range.start, range.end),
                    )),
                    (None, _) => self.vocabulary.spell(text, range, &mut tokens)?,
                }
            }
        }
        Ok(tokens)
    }
}

impl Pieces {
    /// Tokens of a character that is no piece: its bytes, each of which spans the
    /// character, or the unknown token, once for neighbours.
    fn spell(&self, text: &str, range: Range<usize>, tokens: &mut Vec<Token>) -> Result<()> {
        let token = |id: u32| {
            let text = self.pieces.get(id as usize).map(|piece| piece.text.to_string());
            Token::new(id, text.unwrap_or_default(), (range.start, range.end))
        };
        if let Some(bytes) = &self.bytes {
            tokens.extend(text.bytes().map(|byte| token(bytes[usize::from(byte)])));
            return Ok(());
        }
        let Some(unknown) = self.unknown else {
            return Err(format!(
                "no piece covers `{text}`, and there are neither byte tokens nor an unknown token"
            )
            .into());
        };
        match tokens.last_mut() {
            Some(last) if last.id == unknown => last.offsets.1 = range.end,
            _ => tokens.push(token(unknown)),
        }
        Ok(())
    }
}

impl Model for Pieces {
    type Trainer = BpeTrainer;

    fn tokenize(&self, sequence: &str) -> Result<Vec<Token>> {
        Merging::new(self, sequence).tokens()
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.pieces.get(id as usize).map(|piece| piece.text.to_string())
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        self.ids.iter().map(|(text, &id)| (text.to_string(), id)).collect()
    }

    fn get_vocab_size(&self) -> usize {
        self.pieces.len()
    }

    fn save(&self, _: &Path, _: Option<&str>) -> Result<Vec<PathBuf>> {
        Err("pieces are read from a model's file and never written".into())
    }

    fn get_trainer(&self) -> BpeTrainer {
        BpeTrainer::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(list: &[(&str, f32, Role)]) -> Pieces {
        let texts: Vec<_> = list.iter().map(|piece| piece.0).collect();
        let scores: Vec<_> = list.iter().map(|piece| piece.1).collect();
        let roles: Vec<_> = list.iter().map(|piece| piece.2).collect();
        let unknown = roles.iter().position(|&role| role == Role::Unknown);
        Pieces::new(&texts, &scores, &roles, unknown.map(|id| id as u32)).unwrap()
    }

    fn texts(pieces: &Pieces, text: &str) -> Vec<String> {
        pieces.tokenize(text).unwrap().into_iter().map(|token| token.value).collect()
    }

    #[test]
    fn the_highest_score_merges_first_and_of_equal_ones_the_leftmost() {
        use Role::Normal;
        let mut list = vec![("a", -9.0, Normal), ("b", -9.0, Normal), ("c", -9.0, Normal)];
        list.extend([("ab", -2.0, Normal), ("bc", -1.0, Normal), ("aa", -3.0, Normal)]);
        let pieces = pieces(&list);
        assert_eq!(texts(&pieces, "abc"), ["a", "bc"]);
        assert_eq!(texts(&pieces, "abab"), ["ab", "ab"]);
        assert_eq!(texts(&pieces, "aaa"), ["aa", "a"]);
        assert!(texts(&pieces, "").is_empty());
    }

    /// Two ways to one piece have one score: the place in the text decides, which
    /// ranks in a list of merges cannot say.
    #[test]
    fn ways_to_the_same_piece_tie() {
        use Role::Normal;
        let pieces = pieces(&[
            ("a", -9.0, Normal),
            ("x", -9.0, Normal),
            ("aa", -2.0, Normal),
            ("ax", -1.0, Normal),
            ("aaa", -3.0, Normal),
        ]);
        assert_eq!(texts(&pieces, "aaaaa"), ["aa", "aaa"]);
        assert_eq!(texts(&pieces, "aaaax"), ["aaa", "ax"]);
    }

    #[test]
    fn unused_pieces_fall_apart_again() {
        let pieces = pieces(&[
            ("a", -9.0, Role::Normal),
            ("b", -9.0, Role::Normal),
            ("ab", -1.0, Role::Unused),
            ("aba", -2.0, Role::Normal),
        ]);
        assert_eq!(texts(&pieces, "ab"), ["a", "b"]);
        assert_eq!(texts(&pieces, "aba"), ["aba"]);
    }

    #[test]
    fn control_tokens_do_not_come_of_merging() {
        let pieces = pieces(&[
            ("<", -9.0, Role::Normal),
            (">", -9.0, Role::Normal),
            ("<>", 0.0, Role::Control),
        ]);
        assert_eq!(texts(&pieces, "<>"), ["<", ">"]);
    }

    #[test]
    fn characters_without_a_piece_are_unknown_together_or_spelled() {
        let unknown = pieces(&[("<unk>", 0.0, Role::Unknown), ("a", -1.0, Role::Normal)]);
        let tokens = unknown.tokenize("aéüa").unwrap();
        let expected: [(u32, (usize, usize)); 3] = [(1, (0, 1)), (0, (1, 5)), (1, (5, 6))];
        let found: Vec<_> = tokens.iter().map(|token| (token.id, token.offsets)).collect();
        assert_eq!(found, expected);
        let names: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
        let mut list: Vec<_> = names.iter().map(|name| (name.as_str(), 0.0, Role::Byte)).collect();
        list.push(("a", -1.0, Role::Normal));
        let spelled = pieces(&list);
        let tokens = spelled.tokenize("aé").unwrap();
        let found: Vec<_> = tokens.iter().map(|token| (token.id, token.offsets)).collect();
        assert_eq!(found, [(256, (0, 1)), (0xc3, (1, 3)), (0xa9, (1, 3))]);
        list.remove(7);
        let texts: Vec<_> = list.iter().map(|piece| piece.0).collect();
        let roles: Vec<_> = list.iter().map(|piece| piece.2).collect();
        assert!(Pieces::new(&texts, &[0.0; 256], &roles, None).is_err());
        assert!(pieces(&[("a", 0.0, Role::Normal)]).tokenize("b").is_err());
    }
}
