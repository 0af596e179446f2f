//! Prints the tables of the model: each scene with all rules, each mutant, and larger scenes for a limited time.
//!
//! `model SCENE [RULE]` runs a single scene, and prints the steps that break a property.

use std::{process::ExitCode, time::Duration};

use model::{Rule, Rules, Scene, finder, run, scenes};

/// Time for a scene of the tests.
const LIMIT: Duration = Duration::from_secs(60);

/// Time for each larger scene: all of them take a few minutes.
const LARGE_LIMIT: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let is_good = match arguments[..] {
        [] => tables(),
        [name] => single(name, None),
        [name, rule] => single(name, Some(rule)),
        _ => Err("usage: model [SCENE [RULE]]".to_owned()),
    };
    match is_good {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("model: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints all tables, and returns whether the protocol holds and each mutant is found.
fn tables() -> Result<bool, String> {
    let mut is_good = true;
    println!("| scene | states | longest run | seconds | outcome |\n|---|---|---|---|---|");
    let small = scenes::SCENES.iter().map(|scene| (scene, LIMIT));
    let large = scenes::LARGER.iter().map(|scene| (scene, LARGE_LIMIT));
    for (scene, limit) in small.chain(large) {
        let run = run(scene, Rules::ALL, 2, limit);
        let outcome = match &run.broken {
            Some((property, _)) => format!("broken: {property}"),
            None if run.is_whole => "holds".to_owned(),
            None => "holds so far".to_owned(),
        };
        is_good &= run.broken.is_none();
        println!("| {} | {} | {} | {:.2} | {outcome} |", scene.name, run.states, run.depth, run.took.as_secs_f32());
    }
    println!("\n| rule left out | scene | broken property | steps | states | seconds |\n|---|---|---|---|---|---|");
    for &rule in Rule::ALL {
        let (scene, property) = finder(rule);
        let run = run(scene, Rules::ALL.without(rule), 1, LIMIT);
        let steps = run.broken.as_ref().map_or(0, |(_, steps)| steps.len());
        let is_found = run.broken.as_ref().is_some_and(|(broken, _)| *broken == property);
        is_good &= is_found;
        let text = if is_found { property } else { "not found" };
        println!("| {rule} | {} | {text} | {steps} | {} | {:.2} |", scene.name, run.states, run.took.as_secs_f32());
    }
    Ok(is_good)
}

/// Runs one scene and prints the steps that break a property.
fn single(name: &str, rule: Option<&str>) -> Result<bool, String> {
    let scenes: Vec<&Scene> = scenes::SCENES.iter().chain(scenes::LARGER).collect();
    let scene = scenes.iter().find(|scene| scene.name == name).ok_or_else(|| {
        let names: Vec<&str> = scenes.iter().map(|scene| scene.name).collect();
        format!("no such scene; the scenes are {}", names.join(", "))
    })?;
    let rules = match rule {
        None => Rules::ALL,
        Some(name) => {
            let rule = Rule::ALL.iter().find(|rule| rule.name() == name).ok_or_else(|| {
                let names: Vec<&str> = Rule::ALL.iter().map(|rule| rule.name()).collect();
                format!("no such rule; the rules are {}", names.join(", "))
            })?;
            Rules::ALL.without(*rule)
        }
    };
    let run = run(scene, rules, 2, LIMIT);
    println!("{} states, longest run {}, {:.2} s", run.states, run.depth, run.took.as_secs_f32());
    let Some((property, steps)) = run.broken else {
        println!("{}", if run.is_whole { "holds" } else { "holds so far" });
        return Ok(true);
    };
    println!("broken: {property}");
    steps.iter().for_each(|step| println!("  {step}"));
    Ok(false)
}
