//! The cases that tests and benches run.

/// Lengths around the widths at which implementations change course.
pub const SIZES: [usize; 12] = [0, 1, 2, 7, 15, 16, 17, 31, 32, 33, 100, 65_537];

/// Widths of rows that are normalised.
pub const NORM_WIDTHS: [usize; 10] = [1, 2, 15, 16, 17, 31, 32, 33, 576, 65_537];
/// How many of them.
pub const NORM_ROWS: [usize; 4] = [0, 1, 3, 40];

/// Rows and width of each half of a fused projection whose activations are gated.
pub const GATED: [(usize, usize); 6] = [(0, 8), (3, 0), (1, 1), (5, 31), (64, 33), (513, 128)];

/// Rotary embedding: batch, positions, heads, width of a head, width that is rotated.
pub const ROTARY: [(usize, usize, usize, usize, usize); 6] = [
    (1, 5, 2, 8, 8),
    (2, 3, 1, 33, 32),
    (3, 17, 5, 64, 16),
    (1, 0, 2, 4, 4),
    (2, 4, 3, 5, 0),
    (2, 3, 9, 128, 128),
];

/// New tokens for a cache of keys and values: positions that come, capacity, heads, widths of keys
/// and of values, and for each row how many of the positions count and where they go.
pub type CacheAppend = ([usize; 5], &'static [usize], &'static [usize]);

/// Single tokens and several, in rows alike and ragged ones, at the beginning, at the end, and
/// beyond it; widths that are whole packs, and others.
pub const CACHE_APPEND: [CacheAppend; 9] = [
    ([1, 64, 2, 16, 16], &[1], &[0]),
    ([1, 64, 2, 16, 16], &[1], &[63]),
    ([1, 64, 8, 128, 128], &[1, 1, 1], &[5, 0, 40]),
    ([1, 3, 1, 5, 3], &[1, 0], &[2, 1]),
    ([7, 9, 3, 8, 24], &[7, 3, 0], &[2, 6, 9]),
    ([5, 8, 2, 33, 7], &[5, 5], &[5, 8]),
    ([4, 4, 1, 64, 0], &[4], &[0]),
    ([0, 4, 2, 8, 8], &[0, 0], &[1, 2]),
    ([40, 128, 4, 96, 64], &[40, 17], &[88, 1]),
];

/// Routers: tokens, experts, how many of them are chosen.
pub const ROUTER: [(usize, usize, usize); 20] = [
    (0, 4, 2),
    (1, 1, 1),
    (5, 2, 1),
    (4, 2, 2),
    (3, 5, 5),
    (9, 7, 3),
    (7, 8, 2),
    (33, 8, 8),
    (2, 16, 16),
    (3, 32, 16),
    (3, 33, 4),
    (33, 60, 4),
    (2, 64, 6),
    (5, 65, 1),
    (700, 128, 8),
    (2, 129, 16),
    (1, 256, 8),
    (2, 511, 15),
    (5, 512, 16),
    (5000, 8, 2),
];

/// A linear layer: `x [m, d_in]`, `weight [d_out, d_in]`.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// Rows.
    pub m: usize,
    /// Input width.
    pub d_in: usize,
    /// Output width.
    pub d_out: usize,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether it is also measured.
    pub bench: bool,
}

const fn linear(m: usize, d_in: usize, d_out: usize, bias: bool) -> Linear {
    Linear { m, d_in, d_out, bias, bench: false }
}

const fn measured(m: usize, d_in: usize, d_out: usize) -> Linear {
    Linear { m, d_in, d_out, bias: false, bench: true }
}

/// Edges of tiles, panels and blocks, then the layers of a 135M-parameter model
/// (576 wide, 9 heads of 64, 3 of keys and values, 1536 in the feed-forward).
pub const LINEAR: &[Linear] = &[
    linear(0, 8, 8, true),
    linear(3, 0, 5, true),
    linear(3, 0, 5, false),
    linear(3, 5, 0, false),
    linear(1, 1, 1, false),
    linear(1, 31, 33, true),
    linear(2, 32, 32, false),
    linear(5, 33, 31, true),
    linear(6, 15, 64, false),
    linear(7, 16, 65, true),
    linear(13, 17, 95, false),
    linear(14, 640, 96, true),
    linear(15, 641, 97, true),
    linear(29, 1300, 40, false),
    linear(257, 48, 33, true),
    linear(64, 99, 513, true),
    measured(1, 576, 3072),
    measured(1, 576, 49_152),
    measured(512, 576, 960),
    measured(512, 576, 576),
    measured(512, 576, 1536),
    measured(512, 576, 3072),
    measured(512, 1536, 576),
];

/// A batch for attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key–value heads.
    pub kv_heads: usize,
    /// Width of queries and keys.
    pub d_head: usize,
    /// Width of values.
    pub d_value: usize,
    /// Valid queries of each row.
    pub lengths: &'static [usize],
    /// Keys before each row's first query.
    pub offsets: &'static [usize],
    /// Sliding window.
    pub window: Option<usize>,
    /// Bound of the scores.
    pub soft_cap: Option<f64>,
    /// What the queries are multiplied with: large ones make one key win.
    pub sharpness: f32,
    /// Whether it is also measured.
    pub bench: bool,
}

const PLAIN: Attention = Attention {
    heads: 2,
    kv_heads: 2,
    d_head: 16,
    d_value: 16,
    lengths: &[5],
    offsets: &[0],
    window: None,
    soft_cap: None,
    sharpness: 1.0,
    bench: false,
};

const GROUPED: Attention = Attention { heads: 6, kv_heads: 2, ..PLAIN };

const OCTET: Attention = Attention { heads: 8, kv_heads: 1, ..PLAIN };

const CAPPED: Attention = Attention { soft_cap: Some(3.0), sharpness: 2.0, ..PLAIN };

const SMALL_MODEL: Attention =
    Attention { heads: 9, kv_heads: 3, d_head: 64, d_value: 64, bench: true, ..PLAIN };

/// Edges of lanes and tiles, ragged batches, caches, windows, grouped heads, odd
/// widths and those of models, sharp heads, capped scores; then a 135M-parameter model's layer.
pub const ATTENTION: &[Attention] = &[
    PLAIN,
    Attention { lengths: &[1], ..PLAIN },
    Attention { lengths: &[2], d_head: 1, d_value: 1, ..PLAIN },
    Attention { lengths: &[0, 3], offsets: &[0, 0], ..PLAIN },
    Attention { lengths: &[31, 32, 33], offsets: &[0, 0, 0], ..PLAIN },
    Attention { lengths: &[167, 168, 169], offsets: &[0, 0, 0], heads: 1, kv_heads: 1, ..PLAIN },
    Attention { lengths: &[40, 1, 7], offsets: &[0, 300, 5], ..GROUPED },
    Attention { lengths: &[1, 1, 1], offsets: &[0, 12, 335], heads: 4, kv_heads: 1, ..PLAIN },
    Attention { lengths: &[1], offsets: &[200], heads: 70, kv_heads: 2, ..PLAIN },
    Attention { lengths: &[70], d_head: 33, d_value: 31, heads: 3, kv_heads: 1, ..PLAIN },
    Attention { lengths: &[3], d_head: 650, d_value: 15, heads: 1, kv_heads: 1, ..PLAIN },
    Attention { lengths: &[50, 20], offsets: &[0, 9], window: Some(1), ..PLAIN },
    Attention { lengths: &[50, 20], offsets: &[0, 9], window: Some(7), ..PLAIN },
    Attention { lengths: &[400, 3], offsets: &[0, 380], window: Some(64), ..PLAIN },
    Attention { lengths: &[300], sharpness: 30.0, ..PLAIN },
    Attention { lengths: &[200], sharpness: 300.0, ..PLAIN },
    Attention { lengths: &[1100], heads: 1, kv_heads: 1, ..PLAIN },
    Attention { lengths: &[33, 170], offsets: &[0, 9], soft_cap: Some(0.5), ..PLAIN },
    Attention { lengths: &[300], soft_cap: Some(50.0), sharpness: 20.0, ..PLAIN },
    Attention { lengths: &[40, 1, 7], offsets: &[0, 300, 5], soft_cap: Some(2.0), ..GROUPED },
    Attention { lengths: &[400, 3], offsets: &[0, 380], window: Some(64), ..CAPPED },
    Attention { lengths: &[63, 64, 65], offsets: &[1, 0, 128], d_head: 2, d_value: 2, ..PLAIN },
    Attention { lengths: &[130], window: Some(95), ..PLAIN },
    Attention { lengths: &[130], offsets: &[60], d_head: 20, d_value: 20, ..GROUPED },
    Attention { lengths: &[45, 0, 9], offsets: &[0, 700, 91], d_head: 80, d_value: 80, ..OCTET },
    Attention { lengths: &[20, 33], offsets: &[110, 0], d_head: 96, d_value: 96, ..GROUPED },
    Attention { lengths: &[140, 1], offsets: &[3, 77], d_head: 128, d_value: 128, ..GROUPED },
    Attention { lengths: &[70], offsets: &[9], d_head: 192, d_value: 128, ..PLAIN },
    Attention { lengths: &[66, 5], offsets: &[0, 40], d_head: 256, d_value: 256, ..CAPPED },
    Attention { lengths: &[1, 0, 1, 1], offsets: &[900, 5, 0, 63], d_head: 64, ..OCTET },
    Attention { lengths: &[3, 8], offsets: &[500, 120], window: Some(100), d_head: 128, ..OCTET },
    Attention { lengths: &[8, 2], offsets: &[333, 0], d_head: 256, d_value: 256, ..CAPPED },
    Attention { lengths: &[2], offsets: &[1400], d_head: 80, d_value: 80, ..PLAIN },
    Attention { lengths: &[512], ..SMALL_MODEL },
    Attention { lengths: &[2048], ..SMALL_MODEL },
    Attention { lengths: &[2048], soft_cap: Some(50.0), ..SMALL_MODEL },
    Attention { lengths: &[1], offsets: &[2047], ..SMALL_MODEL },
];

/// Mixtures of experts: tokens, width, width of the hidden layer, experts, how many of them are
/// chosen (one may be chosen twice). Up to 8 tokens and more; experts with few and with many of
/// them; widths of whole 16 bytes and others; more routed entries than 8,192.
pub const MOE: [(usize, usize, usize, usize, usize); 18] = [
    (0, 8, 8, 4, 2),
    (1, 1, 1, 1, 1),
    (1, 33, 17, 5, 3),
    (1, 64, 64, 8, 2),
    (3, 72, 40, 4, 2),
    (7, 520, 24, 2, 1),
    (8, 40, 72, 3, 16),
    (9, 1, 1, 1, 1),
    (9, 33, 17, 8, 2),
    (9, 16, 48, 2, 16),
    (33, 200, 136, 4, 2),
    (40, 24, 16, 512, 16),
    (50, 64, 64, 8, 2),
    (70, 40, 70, 2, 2),
    (300, 136, 72, 3, 1),
    (130, 33, 65, 2, 1),
    (520, 8, 8, 16, 16),
    (520, 8, 8, 512, 16),
];
