//! Figures by measurement and path, one per round, and what they come to.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::bench::paths::Path;

/// Every figure of a run.
#[derive(Default)]
pub(crate) struct Samples {
    figures: BTreeMap<String, BTreeMap<Path, Vec<f64>>>,
}

impl Samples {
    /// One round's figure.
    pub(crate) fn add(&mut self, measurement: &str, path: Path, figure: f64) {
        self.figures.entry(measurement.to_owned()).or_default().entry(path).or_default().push(figure);
    }

    /// Takes another run's figures for those of the same name.
    pub(crate) fn replace(&mut self, other: Samples) {
        self.figures.extend(other.figures);
    }

    /// Whether anything was measured over it.
    pub(crate) fn has(&self, path: Path) -> bool {
        self.figures.values().any(|paths| paths.contains_key(&path))
    }

    /// Median over the rounds.
    pub(crate) fn median(&self, measurement: &str, path: Path) -> Option<f64> {
        median(self.figures.get(measurement)?.get(&path)?.clone())
    }

    /// Median of the rounds' ratios: one measurement of one path to one of another.
    pub(crate) fn ratio(&self, (of, path): (&str, Path), (to, other): (&str, Path)) -> Option<f64> {
        let (of, to) = (self.figures.get(of)?.get(&path)?, self.figures.get(to)?.get(&other)?);
        median(of.iter().zip(to).map(|(of, to)| of / to).collect())
    }

    /// The measurements, in the order of their names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.figures.keys().map(String::as_str)
    }

    pub(crate) fn to_json(&self) -> Value {
        let all = self.figures.iter().map(|(name, paths)| {
            let paths = paths.iter().map(|(path, figures)| {
                (path.name().to_owned(), json!({"median": median(figures.clone()), "rounds": figures}))
            });
            (name.clone(), Value::Object(paths.collect()))
        });
        Value::Object(all.collect())
    }
}

fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.retain(|figure| figure.is_finite());
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => None,
        n if n % 2 == 1 => Some(figures[middle]),
        _ => Some(f64::midpoint(figures[middle - 1], figures[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_paired_by_round() {
        let mut samples = Samples::default();
        for (ours, theirs) in [(10.0, 1.0), (20.0, 10.0), (30.0, 10.0)] {
            samples.add("down", Path::Stead, ours);
            samples.add("down", Path::Forward, theirs);
        }
        assert_eq!(samples.ratio(("down", Path::Stead), ("down", Path::Forward)), Some(3.0));
        assert_eq!(samples.median("down", Path::Stead), Some(20.0));
        assert_eq!(samples.median("up", Path::Stead), None);
    }

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(vec![f64::NAN]), None);
    }
}
