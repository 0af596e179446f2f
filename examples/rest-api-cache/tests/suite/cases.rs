//! Script of 30 numbered cases: documents, lists and views of the recorded upstream.
use std::fmt::Debug;

use serde_json::{Value, json};

use crate::support::{
    Process,
    recorded::{FORKS, ISSUES, STARS, UPDATED},
    stage,
};

/// Results of the cases.
#[derive(Default)]
struct Script {
    passed: usize,
    total: usize,
    failed: Vec<String>,
}

impl Script {
    /// Runs a case: the two values must be equal.
    fn case<T: PartialEq + Debug>(&mut self, name: &str, actual: T, expected: T) {
        self.total += 1;
        if actual == expected {
            self.passed += 1;
        } else {
            self.failed.push(format!("{name}: {actual:?}, expected {expected:?}"));
        }
    }
}

/// Returns one field of all items, sorted.
fn sorted<T: Ord>(list: &Value, field: impl Fn(&Value) -> T) -> Vec<T> {
    let mut all: Vec<_> = list.as_array().unwrap().iter().map(field).collect();
    all.sort();
    all
}

fn text(field: &str) -> impl Fn(&Value) -> String {
    move |each| each[field].as_str().unwrap_or("null").to_owned()
}

fn lowercase(field: &str) -> impl Fn(&Value) -> String {
    move |each| each[field].as_str().unwrap_or("null").to_lowercase()
}

fn id(each: &Value) -> u64 {
    each["id"].as_u64().unwrap()
}

/// Runs all cases of the script.
#[test]
fn script_passes_thirty_of_thirty_cases() {
    let (_upstream, process) = stage(&[]);
    let mut script = Script::default();
    script.case("01-01", process.get("/healthcheck").status, 200);
    documents(&process, &mut script);
    lists(&process, &mut script);
    views(&process, &mut script);
    println!("{}/{} passed", script.passed, script.total);
    assert!(script.failed.is_empty(), "{:#?}", script.failed);
    assert_eq!((script.passed, script.total), (30, 30));
}

fn documents(process: &Process, script: &mut Script) {
    let root = process.json("/");
    script.case("02-01", root.as_object().unwrap().len(), 31);
    let url = "https://api.github.com/search/repositories?q={query}{&page,per_page,sort,order}";
    script.case("02-02", root["repository_search_url"].clone(), json!(url));
    let url = "https://api.github.com/orgs/{org}/repos{?type,page,per_page,sort}";
    script.case("02-03", root["organization_repositories_url"].clone(), json!(url));

    let organisation = process.json("/orgs/Netflix");
    script.case("03-01", organisation.as_object().unwrap().len(), 28);
    let url = "https://avatars3.githubusercontent.com/u/913567?v=4";
    script.case("03-02", organisation["avatar_url"].clone(), json!(url));
    script.case("03-03", organisation["location"].clone(), json!("Los Gatos, California"));
}

fn lists(process: &Process, script: &mut Script) {
    let members = process.json("/orgs/Netflix/members");
    script.case("04-01", (7..10).contains(&members.as_array().unwrap().len()), true);
    script.case("04-02", sorted(&members, lowercase("login"))[0].as_str(), "chali");
    script.case("04-03", sorted(&members, text("login"))[0].as_str(), "chali");
    script.case("04-04", sorted(&members, text("login")).last().unwrap().as_str(), "rpalcolea");
    script.case("04-05", sorted(&members, id)[0], 217_030);
    script.case("04-06", *sorted(&members, id).last().unwrap(), 3_108_309);
    for (name, login) in [("04-07", "chali"), ("04-08", "rpalcolea")] {
        let orgs = process.json(&format!("/users/{login}/orgs"));
        let joined: String = sorted(&orgs, |org| format!("{}:", org["login"].as_str().unwrap())).concat();
        script.case(name, joined.as_str(), "Netflix:nebula-plugins:");
    }

    let repositories = process.json("/orgs/Netflix/repos");
    script.case("05-01", (128..177).contains(&repositories.as_array().unwrap().len()), true);
    script.case("05-02", sorted(&repositories, lowercase("full_name"))[0].as_str(), "netflix/aegisthus");
    script.case("05-03", sorted(&repositories, text("full_name"))[0].as_str(), "Netflix/AWSObjectMapper");
    script.case("05-04", sorted(&repositories, lowercase("full_name")).last().unwrap().as_str(), "netflix/zuul");
    script.case("05-05", sorted(&repositories, id)[0], 2_044_029);
    script.case("05-06", *sorted(&repositories, id).last().unwrap(), 184_627_693);
    let mut languages = sorted(&repositories, |each| format!("{}:", text("language")(each)));
    languages.dedup();
    let all = "C:C#:C++:Clojure:D:Dockerfile:Go:Groovy:HTML:Java:JavaScript:Python:Ruby:Scala:Shell:null:";
    // The order is that of the names alone, as `sort` has it.
    languages.sort_by(|a, b| a.trim_end_matches(':').cmp(b.trim_end_matches(':')));
    script.case("05-07", languages.concat().as_str(), all);
}

fn views(process: &Process, script: &mut Script) {
    let named = |(name, count): &(&str, u64)| json!([format!("Netflix/{name}"), count]);
    let timed = |(name, time): &(&str, &str)| json!([format!("Netflix/{name}"), time]);
    let views = [
        ("06-01", "06-02", "forks", FORKS.iter().map(named).collect::<Vec<_>>()),
        ("06-03", "06-04", "last_updated", UPDATED.iter().map(timed).collect()),
        ("06-05", "06-06", "open_issues", ISSUES.iter().map(named).collect()),
        ("06-07", "06-08", "stars", STARS.iter().map(named).collect()),
    ];
    for (five, ten, view, expected) in views {
        script.case(five, process.json(&format!("/view/top/5/{view}")), Value::from(expected[..5].to_vec()));
        script.case(ten, process.json(&format!("/view/top/10/{view}")), Value::from(expected));
    }
}

/// Checks that a bad count is 400 and an unknown view 404.
#[test]
fn bad_count_and_unknown_view_are_refused() {
    let (_upstream, process) = stage(&[]);
    for count in ["0", "-1", "many", "1.5", "99999999999999999999"] {
        let answer = process.get(&format!("/view/top/{count}/forks"));
        assert_eq!((answer.status, answer.body.as_str()), (400, "count incorrect in request"), "{count}");
    }
    assert_eq!(
        process.json("/view/top/1000/stars").as_array().unwrap().len(),
        152,
        "a large count gives all repositories"
    );
    assert_eq!(process.get("/view/top/5/watchers").status, 404);
    assert_eq!(process.get("/view/top/5/forks").header("content-type"), Some("application/json; charset=utf-8"));
}
