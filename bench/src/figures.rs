//! What a row, or a peer, came to: samples with their percentiles, or one figure.

/// Never empty.
#[derive(Debug, Clone)]
pub struct Figures {
    /// Ascending.
    sorted: Vec<f64>,
    /// How many things happened while this was measured.
    n: usize,
}

impl Figures {
    pub fn samples(mut samples: Vec<f64>) -> Self {
        assert!(!samples.is_empty(), "a row without samples");
        samples.sort_by(f64::total_cmp);
        Self { n: samples.len(), sorted: samples }
    }
    /// One figure over `n` things: a rate, or a mean.
    pub fn one(value: f64, n: usize) -> Self {
        Self { sorted: vec![value], n }
    }
    pub fn n(&self) -> usize {
        self.n
    }
    pub fn p50(&self) -> f64 {
        self.percentile(50)
    }
    pub fn p99(&self) -> f64 {
        self.percentile(99)
    }
    /// Whether percentiles say anything.
    pub fn has_spread(&self) -> bool {
        self.sorted.len() > 1
    }
    /// Nearest rank.
    fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.sorted.len() * percent).div_ceil(100).max(1);
        self.sorted[rank - 1]
    }
}

/// Three figures of a number, as much as a noisy machine gives.
pub fn short(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_by_nearest_rank() {
        let figures = Figures::samples((1..=100).rev().map(f64::from).collect());
        assert_eq!((figures.p50(), figures.p99()), (50.0, 99.0));
        let few = Figures::samples(vec![3.0, 1.0, 2.0]);
        assert_eq!((few.p50(), few.p99()), (2.0, 3.0));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([0.6, 0.123, 12.34, 400.0, 20000.4].map(short), ["0.6", "0.12", "12.3", "400", "20000"]);
    }
}
