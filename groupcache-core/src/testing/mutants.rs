//! Mutants: known bugs of this design, each in the place of the code that prevents it.
//!
//! Simulations and interleavings switch on one mutant with `GROUPCACHE_MUTANT`, and must then fail. An oracle that
//! accepts the mutant proves nothing. In every other build `mutant!` is the constant `false`. The table in
//! `verification/simulation/MUTANTS.md` has the effect of each mutant.

/// Returns whether a mutant is on: never in this build.
#[cfg(not(any(simulation, shuttle)))]
macro_rules! mutant {
    ($name:ident) => {
        false
    };
}

/// Returns whether a mutant is on.
#[cfg(any(simulation, shuttle))]
macro_rules! mutant {
    ($name:ident) => {
        crate::testing::mutants::Mutant::$name.is_on()
    };
}

#[cfg(any(simulation, shuttle))]
macro_rules! mutants {
    ($($name:ident,)*) => {
        #[derive(Clone, Copy, Debug)]
        #[cfg_attr(shuttle, expect(dead_code, reason = "interleavings do not reach the places of some mutants"))]
        pub(crate) enum Mutant { $($name),* }

        /// Values of `GROUPCACHE_MUTANT`.
        #[cfg_attr(shuttle, expect(dead_code, reason = "for the simulation"))]
        pub const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

#[cfg(any(simulation, shuttle))]
mutants! {
    ServerForwards,
    FlightStaysWhenDropped,
    PanicNotCaught,
    StaleInsertAfterRemove,
    FallbackOnEveryError,
    UnboundedFallback,
    NoSecondLook,
    EmptySetAccepted,
    SnapshotWatchGap,
    GoodbyeIgnored,
    CopyNotInvalidated,
    PeekIgnoresStripes,
    PullIgnoresStripes,
    HandedValueLivesAnew,
    DeadlineIgnored,
    HorizonVouchesForAll,
    AgeNotPassedOn,
    AppendBeforeApply,
    BaseIsNoWrite,
    BaseKeepsFlights,
    ClosureLeftOut,
    LeavingNodeReleasesHorizon,
    NamesLeftOut,
    NoLoadSlots,
    NotNamedOn,
    OneWriterNamed,
    PageNotJudged,
    PongBeforeEntries,
    PongOfOtherCompany,
    RelayedWithoutCompany,
    SetWithoutPositions,
    SettledByUnlistedPeer,
    YoungLogIsWhole,
}

#[cfg(any(simulation, shuttle))]
impl Mutant {
    /// Returns whether `GROUPCACHE_MUTANT` names this mutant.
    pub(crate) fn is_on(self) -> bool {
        static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
        let chosen = CHOSEN.get_or_init(|| std::env::var("GROUPCACHE_MUTANT").ok());
        chosen.as_ref().is_some_and(|chosen| *chosen == format!("{self:?}"))
    }
}
