//! Views: four rankings of the repositories, which are computed from the cached repositories and cached themselves.
use groupcache_discovery::{BoxError, Group, LoadError, Prost};
use serde::{Deserialize, Serialize};

use crate::{documents::Document, time::now_us};

/// Property by which repositories are ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    Forks,
    LastUpdated,
    OpenIssues,
    Stars,
}

impl View {
    pub(crate) const ALL: [Self; 4] = [Self::Forks, Self::LastUpdated, Self::OpenIssues, Self::Stars];

    /// Returns the name of the view in a path.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Forks => "forks",
            Self::LastUpdated => "last_updated",
            Self::OpenIssues => "open_issues",
            Self::Stars => "stars",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|view| view.name() == name)
    }

    fn of(self, repository: &Repository) -> Measure {
        match self {
            Self::Forks => Measure::Count(repository.forks_count),
            Self::LastUpdated => Measure::Time(repository.updated_at.clone()),
            Self::OpenIssues => Measure::Count(repository.open_issues_count),
            Self::Stars => Measure::Count(repository.stargazers_count),
        }
    }
}

/// Value by which a repository is ranked: a number, or a time of RFC 3339 in UTC, which sorts as text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
enum Measure {
    Count(u64),
    Time(String),
}

/// Fields of a repository that the views read.
#[derive(Deserialize)]
struct Repository {
    full_name: String,
    forks_count: u64,
    updated_at: String,
    open_issues_count: u64,
    stargazers_count: u64,
}

/// All repositories, sorted by one measure in descending order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ranking {
    rows: Vec<(String, Measure)>,
    /// Time of the last answer of the upstream, in microseconds since 1970.
    pub(crate) checked_us: u64,
    /// Time at which the ranking was computed, in microseconds since 1970.
    pub(crate) made_us: u64,
}

impl Ranking {
    /// Returns the first `count` repositories, as JSON.
    pub(crate) fn top(&self, count: usize) -> Result<Vec<u8>, BoxError> {
        Ok(serde_json::to_vec(&self.rows.iter().take(count).collect::<Vec<_>>())?)
    }
}

/// Source of the views: the cached repositories.
pub(crate) struct Repositories {
    pub(crate) documents: Group<Prost<Document>>,
    pub(crate) path: String,
}

impl Repositories {
    /// Loads a view. Returns `None` when the upstream has no list of repositories at the path.
    pub(crate) async fn ranked(&self, view: &str) -> Result<Option<Ranking>, LoadError> {
        let view = View::named(view).ok_or("there is no such view")?;
        let Some(document) = self.documents.get_opt(&self.path).await.map_err(LoadError::transient)? else {
            return Ok(None);
        };
        Ok(Some(rank(view, &document.body(), document.checked_us)?))
    }
}

fn rank(view: View, repositories: &[u8], checked_us: u64) -> Result<Ranking, BoxError> {
    let repositories: Vec<Repository> = serde_json::from_slice(repositories)
        .map_err(|_| "the items in the answer of the upstream are not repositories")?;
    let mut rows: Vec<_> = repositories.iter().map(|each| (each.full_name.clone(), view.of(each))).collect();
    // The name orders repositories with equal measures, so that the order is always the same.
    rows.sort_by(|(name, measure), (other, others)| others.cmp(measure).then_with(|| name.cmp(other)));
    Ok(Ranking { rows, checked_us, made_us: now_us() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranking_orders_equal_measures_by_name() {
        let repository = |name: &str, stars: u32| {
            serde_json::json!({
                "full_name": name, "forks_count": 0, "updated_at": "2019-05-12T19:18:57Z", "open_issues_count": 0,
                "stargazers_count": stars, "more": null,
            })
        };
        let all = serde_json::json!([repository("o/b", 1), repository("o/c", 2), repository("o/a", 1)]).to_string();
        let top = |view, count| String::from_utf8(rank(view, all.as_bytes(), 0).unwrap().top(count).unwrap()).unwrap();
        assert_eq!(top(View::Stars, 2), r#"[["o/c",2],["o/a",1]]"#);
        assert_eq!(top(View::LastUpdated, 1), r#"[["o/a","2019-05-12T19:18:57Z"]]"#);
        assert!(rank(View::Stars, b"{}", 0).is_err());
    }
}
