//! Tests: each scene holds with all rules, and each mutant is found.

use std::time::Duration;

use crate::{Rule, Rules, Scene, finder, run, scenes};

/// End of a run that would take too long: each takes some seconds at most.
const LIMIT: Duration = Duration::from_secs(120);

/// Checks that a scene holds with all rules, through all of its states.
fn holds(scene: &Scene) {
    let run = run(scene, Rules::ALL, 1, LIMIT);
    let steps =
        run.broken.map(|(property, steps)| (property, steps.iter().map(ToString::to_string).collect::<Vec<_>>()));
    assert_eq!(steps, None, "{} is broken", scene.name);
    assert!(run.is_whole, "{} has too many states: {}", scene.name, run.states);
    // W and V are never closer than two nodes in the long chain, so that its write stays pending. A scene with time ends
    // its runs once nothing old is left.
    let is_pending = scene.name == "long chain" || scene.staleness.is_some() && !scene.settles_by_age;
    assert!(run.settles || is_pending, "{} never settles", scene.name);
}

/// Checks that the protocol without `rule` breaks the property that the table of mutants names.
fn is_found(rule: Rule) {
    let (scene, property) = finder(rule);
    let run = run(scene, Rules::ALL.without(rule), 1, LIMIT);
    let broken = run.broken.map(|(property, _)| property);
    assert_eq!(broken, Some(property), "without {rule} in {}", scene.name);
}

#[test]
fn fetch_with_all_rules_holds() {
    holds(&scenes::FETCH);
}

#[test]
fn writer_owns_with_all_rules_holds() {
    holds(&scenes::WRITER_OWNS);
}

#[test]
fn two_writers_with_all_rules_holds() {
    holds(&scenes::TWO_WRITERS);
}

#[test]
fn chain_with_all_rules_holds() {
    holds(&scenes::CHAIN);
}

#[test]
fn long_chain_with_all_rules_holds() {
    holds(&scenes::LONG_CHAIN);
}

#[test]
fn dead_target_with_all_rules_holds() {
    holds(&scenes::DEAD_TARGET);
}

#[test]
fn joiner_with_all_rules_holds() {
    holds(&scenes::JOINER);
}

#[test]
fn holder_restarts_with_all_rules_holds() {
    holds(&scenes::HOLDER_RESTARTS);
}

#[test]
fn owner_restarts_with_all_rules_holds() {
    holds(&scenes::OWNER_RESTARTS);
}

#[test]
fn previous_owner_with_all_rules_holds() {
    holds(&scenes::PREVIOUS_OWNER);
}

#[test]
fn pages_with_all_rules_holds() {
    holds(&scenes::PAGES);
}

#[test]
fn set_with_all_rules_holds() {
    holds(&scenes::SET);
}

#[test]
fn writer_restarts_with_all_rules_holds() {
    holds(&scenes::WRITER_RESTARTS);
}

#[test]
fn horizon_with_all_rules_holds() {
    holds(&scenes::HORIZON);
}

#[test]
fn age_with_all_rules_holds() {
    holds(&scenes::AGE);
}

#[test]
fn writer_dies_with_all_rules_holds() {
    holds(&scenes::WRITER_DIES);
}

#[test]
fn other_company_with_all_rules_holds() {
    holds(&scenes::OTHER_COMPANY);
}

#[test]
fn unlisted_with_all_rules_holds() {
    holds(&scenes::UNLISTED);
}

#[test]
fn unlisted_minute_with_all_rules_holds() {
    holds(&scenes::UNLISTED_MINUTE);
}

#[test]
fn settled_by_age_with_all_rules_holds() {
    holds(&scenes::SETTLED_BY_AGE);
}

#[test]
fn joined_with_all_rules_holds() {
    holds(&scenes::JOINED);
}

#[test]
fn two_reads_with_all_rules_holds() {
    holds(&scenes::TWO_READS);
}

#[test]
fn late_taker_with_all_rules_holds() {
    holds(&scenes::LATE_TAKER);
}

#[test]
fn merged_with_all_rules_holds() {
    holds(&scenes::MERGED);
}

#[test]
fn met_later_with_all_rules_holds() {
    holds(&scenes::MET_LATER);
}

#[test]
fn writer_returns_with_all_rules_holds() {
    holds(&scenes::WRITER_RETURNS);
}

#[test]
fn late_discovery_with_all_rules_holds() {
    holds(&scenes::LATE_DISCOVERY);
}

#[test]
fn companies_grow_with_all_rules_holds() {
    holds(&scenes::COMPANIES_GROW);
}

#[test]
fn protocol_without_apply_first_is_broken() {
    is_found(Rule::ApplyFirst);
}

#[test]
fn protocol_without_detached_flights_is_broken() {
    is_found(Rule::DetachedFlights);
}

#[test]
fn protocol_without_closure_is_broken() {
    is_found(Rule::Closure);
}

#[test]
fn protocol_without_relayed_company_is_broken() {
    is_found(Rule::RelayedCompany);
}

#[test]
fn protocol_without_relayed_ack_is_broken() {
    is_found(Rule::RelayedAck);
}

#[test]
fn protocol_without_present_incarnation_is_broken() {
    is_found(Rule::PresentIncarnation);
}

#[test]
fn protocol_without_met_company_is_broken() {
    is_found(Rule::MetCompany);
}

#[test]
fn protocol_without_sticky_company_is_broken() {
    is_found(Rule::StickyCompany);
}

#[test]
fn protocol_without_base_is_all_is_broken() {
    is_found(Rule::BaseIsAll);
}

#[test]
fn protocol_without_base_detaches_is_broken() {
    is_found(Rule::BaseDetaches);
}

#[test]
fn protocol_without_whole_log_is_broken() {
    is_found(Rule::WholeLog);
}

#[test]
fn protocol_without_named_writes_is_broken() {
    is_found(Rule::NamedWrites);
}

#[test]
fn protocol_without_flight_before_names_is_broken() {
    is_found(Rule::FlightBeforeNames);
}

#[test]
fn protocol_without_compared_before_read_is_broken() {
    is_found(Rule::ComparedBeforeRead);
}

#[test]
fn protocol_without_named_on_is_broken() {
    is_found(Rule::NamedOn);
}

#[test]
fn protocol_without_knowledge_ends_is_broken() {
    is_found(Rule::KnowledgeEnds);
}

#[test]
fn protocol_without_page_positions_is_broken() {
    is_found(Rule::PagePositions);
}

#[test]
fn protocol_without_page_order_is_broken() {
    is_found(Rule::PageOrder);
}

#[test]
fn protocol_without_page_stripe_is_broken() {
    is_found(Rule::PageStripe);
}

#[test]
fn protocol_without_set_positions_is_broken() {
    is_found(Rule::SetPositions);
}

#[test]
fn protocol_without_positions_reached_is_broken() {
    is_found(Rule::PositionsReached);
}

#[test]
fn protocol_without_same_company_is_broken() {
    is_found(Rule::SameCompany);
}

#[test]
fn protocol_without_held_horizon_is_broken() {
    is_found(Rule::HeldHorizon);
}

#[test]
fn protocol_without_held_at_return_is_broken() {
    is_found(Rule::HeldAtReturn);
}

#[test]
fn protocol_without_new_member_is_broken() {
    is_found(Rule::NewMember);
}

#[test]
fn protocol_without_strictly_later_is_broken() {
    is_found(Rule::StrictlyLater);
}

#[test]
fn protocol_without_judged_at_end_is_broken() {
    is_found(Rule::JudgedAtEnd);
}

#[test]
fn protocol_without_passed_age_is_broken() {
    is_found(Rule::PassedAge);
}

#[test]
fn protocol_without_horizon_first_is_broken() {
    is_found(Rule::HorizonFirst);
}

#[test]
fn protocol_without_horizon_of_attached_is_broken() {
    is_found(Rule::HorizonOfAttached);
}

#[test]
fn protocol_without_listed_settle_is_broken() {
    is_found(Rule::ListedSettle);
}

#[test]
fn protocol_without_horizon_of_taken_is_broken() {
    is_found(Rule::HorizonOfTaken);
}

#[test]
fn names_of_rules_and_scenes_differ() {
    let mut names: Vec<&str> = Rule::ALL.iter().map(|rule| rule.name()).collect();
    names.extend(scenes::SCENES.iter().chain(scenes::LARGER).map(|scene| scene.name));
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}
