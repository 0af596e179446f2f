//! Recorded answers of GitHub for one organisation, from May 2019.
use serde_json::{Value, json};

pub(crate) const FORKS: [(&str, u64); 10] = [
    ("Hystrix", 3518),
    ("eureka", 2077),
    ("zuul", 1445),
    ("SimianArmy", 1039),
    ("ribbon", 711),
    ("security_monkey", 673),
    ("conductor", 538),
    ("Cloud-Prize", 488),
    ("chaosmonkey", 455),
    ("asgard", 437),
];
pub(crate) const UPDATED: [(&str, &str); 10] = [
    ("dynomite", "2019-05-12T19:18:57Z"),
    ("SimianArmy", "2019-05-12T19:13:22Z"),
    ("Hystrix", "2019-05-12T18:50:04Z"),
    ("vmaf", "2019-05-12T18:17:29Z"),
    ("fast_jsonapi", "2019-05-12T17:28:08Z"),
    ("eureka", "2019-05-12T16:59:05Z"),
    ("flamescope", "2019-05-12T16:49:11Z"),
    ("security_monkey", "2019-05-12T16:43:38Z"),
    ("chaosmonkey", "2019-05-12T16:26:56Z"),
    ("lemur", "2019-05-12T16:12:16Z"),
];
pub(crate) const ISSUES: [(&str, u64); 10] = [
    ("Hystrix", 335),
    ("ribbon", 162),
    ("astyanax", 161),
    ("zuul", 139),
    ("eureka", 116),
    ("asgard", 105),
    ("conductor", 104),
    ("archaius", 87),
    ("security_monkey", 84),
    ("fast_jsonapi", 75),
];
pub(crate) const STARS: [(&str, u64); 10] = [
    ("Hystrix", 17256),
    ("falcor", 9318),
    ("eureka", 7685),
    ("pollyjs", 7630),
    ("zuul", 7437),
    ("SimianArmy", 7137),
    ("chaosmonkey", 6371),
    ("fast_jsonapi", 4262),
    ("security_monkey", 3531),
    ("vector", 3121),
];
const LANGUAGES: [Option<&str>; 15] = [
    Some("C"),
    Some("C#"),
    Some("C++"),
    Some("Clojure"),
    Some("D"),
    Some("Dockerfile"),
    Some("Go"),
    Some("Groovy"),
    Some("HTML"),
    Some("Java"),
    Some("JavaScript"),
    Some("Python"),
    Some("Ruby"),
    Some("Scala"),
    None,
];
/// Number of repositories: two pages of 100, and less than the 177 that case 05-01 allows.
const REPOSITORIES: usize = 152;
const IDS: [u64; 2] = [2_044_029, 184_627_693];
const MEMBERS: [(&str, u64); 8] = [
    ("rpalcolea", 3_108_309),
    ("copperlight", 1_189_000),
    ("dmuino", 1_287_000),
    ("chali", 217_030),
    ("kishorekasi", 1_860_000),
    ("hyandell", 477_000),
    ("mikegrima", 1_280_000),
    ("msw", 2_200_000),
];

pub(crate) fn documents() -> Vec<(String, Value)> {
    let orgs = json!([{ "login": "Netflix" }, { "login": "nebula-plugins" }]);
    let mut members: Vec<_> = MEMBERS.into_iter().map(|(login, id)| json!({ "login": login, "id": id })).collect();
    members.sort_by_key(|member| member["id"].as_u64());
    vec![
        ("/".into(), root()),
        ("/orgs/Netflix".into(), organisation()),
        ("/orgs/Netflix/members".into(), Value::Array(members)),
        ("/orgs/Netflix/repos".into(), repositories()),
        ("/users/chali/orgs".into(), orgs.clone()),
        ("/users/rpalcolea/orgs".into(), orgs),
    ]
}

/// Returns the root document with 31 keys, of which the cases read two.
fn root() -> Value {
    let mut root = serde_json::Map::new();
    let api = |path: &str| json!(format!("https://api.github.com/{path}"));
    root.insert("repository_search_url".into(), api("search/repositories?q={query}{&page,per_page,sort,order}"));
    root.insert("organization_repositories_url".into(), api("orgs/{org}/repos{?type,page,per_page,sort}"));
    for n in root.len()..31 {
        root.insert(format!("kind_{n}_url"), api(&format!("kind-{n}")));
    }
    Value::Object(root)
}

/// Returns the document of the organisation with 28 keys, of which the cases read two.
fn organisation() -> Value {
    let mut organisation = serde_json::Map::new();
    organisation.insert("avatar_url".into(), json!("https://avatars3.githubusercontent.com/u/913567?v=4"));
    organisation.insert("location".into(), json!("Los Gatos, California"));
    for n in organisation.len()..28 {
        organisation.insert(format!("field_{n}"), json!(n));
    }
    Value::Object(organisation)
}

fn repositories() -> Value {
    let mut names: Vec<String> = ["aegisthus", "AWSObjectMapper"].map(str::to_owned).to_vec();
    let counted = [FORKS, ISSUES, STARS].into_iter().flatten().map(|(name, _)| name);
    for name in counted.chain(UPDATED.map(|(name, _)| name)) {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names.extend((names.len()..REPOSITORIES).map(|n| format!("service-{n}")));
    let count = |of: &[(&str, u64)], name: &str| of.iter().find(|(known, _)| *known == name).map_or(7, |(_, n)| *n);
    let repository = |(n, name): (usize, &String)| {
        let updated = UPDATED.iter().find(|(known, _)| known == name).map(|(_, time)| (*time).to_owned());
        let language = if n % 16 == 15 { Some("Shell") } else { LANGUAGES[n % 16] };
        json!({
            "id": IDS[0] + (IDS[1] - IDS[0]) * n as u64 / (REPOSITORIES as u64 - 1),
            "full_name": format!("Netflix/{name}"),
            "forks_count": count(&FORKS, name),
            "updated_at": updated.unwrap_or_else(|| format!("2019-04-{:02}T10:00:00Z", 1 + n % 28)),
            "open_issues_count": count(&ISSUES, name),
            "stargazers_count": count(&STARS, name),
            "language": language,
            "description": format!("description of {name}, of some length, as everywhere"),
        })
    };
    Value::Array(names.iter().enumerate().map(repository).collect())
}
