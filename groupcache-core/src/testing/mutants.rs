//! Bugs that this design could have, one each in the place where it would be.
//!
//! Simulations and interleavings switch one on by `GROUPCACHE_MUTANT` and must then fail: an oracle that lets it pass
//! judges nothing. In every other build `mutant!` is the constant `false`.

/// Whether this bug is to be there.
#[cfg(not(any(simulation, shuttle)))]
macro_rules! mutant {
    ($name:ident) => {
        false
    };
}

/// Whether this bug is to be there.
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
        #[cfg_attr(shuttle, expect(dead_code, reason = "some are in places that interleavings do not reach"))]
        pub(crate) enum Mutant { $($name),* }

        /// What `GROUPCACHE_MUTANT` may be.
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
}

#[cfg(any(simulation, shuttle))]
impl Mutant {
    pub(crate) fn is_on(self) -> bool {
        static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
        let chosen = CHOSEN.get_or_init(|| std::env::var("GROUPCACHE_MUTANT").ok());
        chosen.as_ref().is_some_and(|chosen| *chosen == format!("{self:?}"))
    }
}
