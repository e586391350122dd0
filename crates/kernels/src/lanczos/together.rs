//! Both starts at once, for graphs whose products are dear however few the vectors:
//! one product serves a step of each, and whatever is to be certified.

use super::{CHECK_EVERY, Certified, FIRST_CHECK, Krylov, dot};
use crate::adjacency::Adjacency;
use crate::graph::LANES;
use crate::laplacian::LaplacianOperator;
use crate::tridiagonal::End;

/// Steps that a start took, and the ends that it found with their unit vectors.
type Found<const E: usize> = (usize, [(Certified, Vec<f64>); E]);

/// As [`Krylov::run`] of the first seed for the wanted ends, and of the second for the
/// smallest eigenvalue.
pub(super) fn run<G: Adjacency, const E: usize>(
    laplacian: &LaplacianOperator<'_, G>,
    [first, second]: [u64; 2],
    ends: [End; E],
    tolerance: f64,
    max_steps: usize,
) -> (Found<E>, Found<1>) {
    let first = Krylov::start(laplacian, first, max_steps);
    let second = Krylov::start(laplacian, second, max_steps);
    let mut first = Start::new(first, ends, tolerance, max_steps);
    let mut second = Start::new(second, [End::Smallest], tolerance, max_steps);
    let mut product = Product::new(laplacian);
    while first.found.is_none() || second.found.is_none() {
        product.vectors.clear();
        first.ask(&mut product.vectors);
        second.ask(&mut product.vectors);
        let mut answers = product.multiply().into_iter();
        first.take(&mut answers);
        second.take(&mut answers);
    }
    (first.finish(), second.finish())
}

/// The recurrences of several starts, as many at a time as a product serves.
pub(super) fn recurrences<G: Adjacency>(
    laplacian: &LaplacianOperator<'_, G>,
    starts: Vec<Vec<f64>>,
    steps: usize,
) -> Vec<(Vec<f64>, Vec<f64>)> {
    let goes_on = |krylov: &Krylov| krylov.alpha.len() < steps && !krylov.exhausted;
    let mut product = Product::new(laplacian);
    let mut found = Vec::with_capacity(starts.len());
    for starts in starts.chunks(LANES) {
        let space = |start: &Vec<f64>| Krylov::from_vector(laplacian, start.clone(), steps);
        let mut spaces: Vec<Krylov> = starts.iter().map(space).collect();
        while spaces.iter().any(goes_on) {
            let going = spaces.iter().filter(|krylov| goes_on(krylov));
            product.vectors = going.map(|krylov| krylov.last().to_vec()).collect();
            let products = product.multiply();
            let going = spaces.iter_mut().filter(|krylov| goes_on(krylov));
            for (krylov, mut product) in going.zip(products) {
                krylov.extend(&mut product);
            }
        }
        found.extend(spaces.into_iter().map(Krylov::into_recurrence));
    }
    found
}

/// Products with a few vectors at once.
struct Product<'a, 'g, G> {
    laplacian: &'a LaplacianOperator<'g, G>,
    vectors: Vec<Vec<f64>>,
    x: Vec<[f64; LANES]>,
    y: Vec<[f64; LANES]>,
    scratch: Vec<[f64; LANES]>,
}

impl<'a, 'g, G: Adjacency> Product<'a, 'g, G> {
    fn new(laplacian: &'a LaplacianOperator<'g, G>) -> Self {
        let n = laplacian.n_padded();
        let rows = vec![[0.0; LANES]; n];
        Self { laplacian, vectors: Vec::new(), x: rows.clone(), y: rows, scratch: Vec::new() }
    }

    fn multiply(&mut self) -> Vec<Vec<f64>> {
        let mut products = Vec::with_capacity(self.vectors.len());
        for vectors in self.vectors.chunks(LANES) {
            for (i, row) in self.x.iter_mut().enumerate() {
                *row = std::array::from_fn(|c| vectors.get(c).map_or(0.0, |vector| vector[i]));
            }
            self.laplacian.block_product(&self.x, &mut self.y, &mut self.scratch);
            products.extend(
                (0..vectors.len()).map(|c| self.y.iter().map(|row| row[c]).collect::<Vec<f64>>()),
            );
        }
        products
    }
}

/// One start: its space, and what it waits for.
struct Start<const E: usize> {
    krylov: Krylov,
    ends: [End; E],
    tolerance: f64,
    max_steps: usize,
    next_check: usize,
    step: usize,
    /// Vectors to be certified, beside the next step.
    candidates: Option<[Vec<f64>; E]>,
    found: Option<[(Certified, Vec<f64>); E]>,
}

impl<const E: usize> Start<E> {
    fn new(krylov: Krylov, ends: [End; E], tolerance: f64, max_steps: usize) -> Self {
        Self {
            krylov,
            ends,
            tolerance,
            max_steps,
            next_check: FIRST_CHECK,
            step: 0,
            candidates: None,
            found: None,
        }
    }

    fn ended(&self) -> bool {
        self.krylov.exhausted || self.step >= self.max_steps
    }

    /// Whether there is a next step: it is taken while candidates are certified, in
    /// case that they fail.
    fn goes_on(&self) -> bool {
        self.found.is_none() && !self.ended()
    }

    /// Adds the vectors that are to be multiplied.
    fn ask(&self, vectors: &mut Vec<Vec<f64>>) {
        if self.found.is_none() {
            vectors.extend(self.candidates.iter().flatten().cloned());
        }
        if self.goes_on() {
            vectors.push(self.krylov.last().to_vec());
        }
    }

    /// Takes their products, in the order in which they were asked for.
    fn take(&mut self, products: &mut impl Iterator<Item = Vec<f64>>) {
        if self.found.is_some() {
            return;
        }
        let goes_on = self.goes_on();
        if let Some(candidates) = self.candidates.take() {
            let found = candidates.map(|vector| match products.next() {
                Some(product) => (certify(&vector, product), vector),
                None => (NONE, vector),
            });
            if !goes_on || found.iter().all(|(end, _)| end.residual <= self.tolerance) {
                self.found = Some(found);
            }
        }
        if !goes_on {
            return;
        }
        // The product of the step, which a certified end makes idle.
        let Some(mut product) = products.next() else { return };
        if self.found.is_some() {
            return;
        }
        self.step += 1;
        self.krylov.extend(&mut product);
        let stop = self.ended();
        if !stop && self.step < self.next_check {
            return;
        }
        self.next_check = self.step + (self.step / 8).max(CHECK_EVERY);
        let coefficients = self.krylov.converged(self.ends, 0.5 * self.tolerance, stop);
        self.candidates = coefficients.map(|ends| ends.map(|c| self.krylov.combine(&c)));
    }

    fn finish(self) -> Found<E> {
        let n = self.krylov.n;
        let none = || std::array::from_fn(|_| (NONE, vec![0.0; n]));
        (self.step, self.found.unwrap_or_else(none))
    }
}

/// What was not found.
const NONE: Certified = Certified { value: f64::NAN, residual: f64::INFINITY };

/// `θ = vᵀLv` and `ρ = ‖Lv − θv‖` of a unit vector and its product.
fn certify(vector: &[f64], mut product: Vec<f64>) -> Certified {
    let value = dot(vector, &product);
    for (p, v) in product.iter_mut().zip(vector) {
        *p -= value * v;
    }
    Certified { value, residual: dot(&product, &product).sqrt() }
}
