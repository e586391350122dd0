//! The columns of `hook_summary`.

/// One number per head and position that the attention summary holds.
///
/// `a_ui` is the attention of query `u` on key `i`; `i` and `j` below are the
/// position that the number belongs to. None of these needs the pattern in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(usize)]
pub enum Statistic {
    /// Row entropy `−Σ_j a_ij ln a_ij`, in nats.
    Entropy,
    /// Row maximum `max_j a_ij`.
    Max,
    /// Mass on the first token `a_i0`.
    FirstToken,
    /// Mean attention distance `Σ_j a_ij |i − j|`, in tokens.
    Distance,
    /// Mass on the last `window` keys, the token itself included.
    WindowMass,
    /// Mass on keys before the boundary (the context, when the boundary is the
    /// first generated token); 0 without a boundary.
    Lookback,
    /// The diagonal `a_ii`.
    Diagonal,
    /// `ln a_ii`, computed as score − log-sum-exp, exact where `a_ii` underflows.
    LogDiagonal,
    /// Attention received, `Σ_{u ≥ i} a_ui`, over the queries of the batch.
    ColumnSum,
}

impl Statistic {
    /// All statistics, in the order of the summary's last axis.
    pub const ALL: [Statistic; 9] = [
        Statistic::Entropy,
        Statistic::Max,
        Statistic::FirstToken,
        Statistic::Distance,
        Statistic::WindowMass,
        Statistic::Lookback,
        Statistic::Diagonal,
        Statistic::LogDiagonal,
        Statistic::ColumnSum,
    ];

    /// How many there are: the width of the summary's last axis.
    pub const COUNT: usize = Self::ALL.len();

    /// The statistic's place on the summary's last axis.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The statistic's name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Statistic::Entropy => "entropy",
            Statistic::Max => "max",
            Statistic::FirstToken => "first_token",
            Statistic::Distance => "distance",
            Statistic::WindowMass => "window_mass",
            Statistic::Lookback => "lookback",
            Statistic::Diagonal => "diagonal",
            Statistic::LogDiagonal => "log_diagonal",
            Statistic::ColumnSum => "column_sum",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Statistic;

    #[test]
    fn order_is_the_index() {
        for (i, statistic) in Statistic::ALL.into_iter().enumerate() {
            assert_eq!(statistic.index(), i);
        }
    }
}
