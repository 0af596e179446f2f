//! Telemetry: what a group knows of itself, as plain data for tools, without the type of its values.

mod group_info;
mod loads;

pub(crate) use self::loads::{LoadRecord, RecentLoads};
pub use self::{
    group_info::GroupInfo,
    loads::{GroupLoads, LoadResult, RecentLoad, RunningLoad},
};
