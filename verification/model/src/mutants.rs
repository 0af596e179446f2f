//! Mutants: for each rule, the scene in which the protocol without the rule fails, and the property that breaks.

use crate::{
    Rule, Scene,
    scenes::{
        AGE, CHAIN, DEAD_TARGET, FETCH, HOLDER_RESTARTS, HORIZON, JOINED, JOINER, LATE_TAKER, LONG_CHAIN, MET_LATER,
        OTHER_COMPANY, OWNER_RESTARTS, PAGES, PREVIOUS_OWNER, SET, TWO_READS, TWO_WRITERS, UNLISTED, UNLISTED_MINUTE,
        WRITER_DIES, WRITER_OWNS, WRITER_RETURNS,
    },
    verdict::{SETTLED, SETTLING, STALENESS},
};

/// Returns the scene that finds the mutant without `rule`, and the property that breaks there.
pub const fn finder(rule: Rule) -> (&'static Scene, &'static str) {
    match rule {
        Rule::ApplyFirst => (&WRITER_OWNS, SETTLED),
        Rule::DetachedFlights | Rule::FlightBeforeNames | Rule::ComparedBeforeRead => (&FETCH, SETTLED),
        Rule::Closure => (&CHAIN, SETTLED),
        Rule::RelayedCompany => (&LONG_CHAIN, SETTLED),
        Rule::RelayedAck => (&FETCH, SETTLING),
        Rule::PresentIncarnation => (&HOLDER_RESTARTS, SETTLED),
        Rule::MetCompany => (&DEAD_TARGET, SETTLING),
        Rule::StickyCompany => (&UNLISTED, STALENESS),
        Rule::BaseIsAll | Rule::BaseDetaches | Rule::WholeLog => (&JOINER, SETTLED),
        Rule::NamedWrites => (&TWO_WRITERS, SETTLED),
        Rule::NamedOn => (&PREVIOUS_OWNER, SETTLED),
        Rule::KnowledgeEnds => (&OWNER_RESTARTS, SETTLED),
        Rule::PagePositions | Rule::PageOrder | Rule::PageStripe => (&PAGES, SETTLED),
        Rule::SetPositions => (&SET, SETTLED),
        Rule::PositionsReached => (&HORIZON, STALENESS),
        Rule::SameCompany => (&OTHER_COMPANY, STALENESS),
        Rule::HeldHorizon | Rule::StrictlyLater => (&WRITER_DIES, STALENESS),
        Rule::HeldAtReturn => (&WRITER_RETURNS, STALENESS),
        Rule::NewMember => (&MET_LATER, STALENESS),
        Rule::JudgedAtEnd | Rule::HorizonOfAttached => (&JOINED, STALENESS),
        Rule::PassedAge => (&AGE, STALENESS),
        Rule::HorizonFirst => (&TWO_READS, STALENESS),
        Rule::ListedSettle => (&UNLISTED_MINUTE, SETTLED),
        Rule::HorizonOfTaken => (&LATE_TAKER, STALENESS),
    }
}
