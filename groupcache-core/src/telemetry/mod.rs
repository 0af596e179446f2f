//! Telemetry: what a group knows of itself, as plain data for tools, without the type of its values.

mod group_info;

pub use self::group_info::GroupInfo;
