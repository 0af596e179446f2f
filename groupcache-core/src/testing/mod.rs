//! Testing: the conformance suite of providers, the hooks of fuzzers, simulations and interleavings, and mutants.
//!
//! Only `mutants` is part of an ordinary build, where each mutant is the constant `false`.

#[macro_use]
pub(crate) mod mutants;

#[cfg(any(test, feature = "testing"))]
pub mod conformance;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
#[cfg(all(test, shuttle))]
pub(crate) mod interleavings;
#[cfg(simulation)]
#[doc(hidden)]
pub mod simulation;
#[cfg(test)]
pub(crate) mod unit;
