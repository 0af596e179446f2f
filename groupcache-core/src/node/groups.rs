//! Groups of a node as tools see them, without the types of their values.

use crate::node::{
    Node,
    inspect::{GroupInfo, GroupLoads},
};

impl Node {
    /// Returns the facts of each group on this node, sorted by name, without the types of their values.
    ///
    /// ```
    /// # fn f(node: &groupcache_core::Node) {
    /// for group in node.groups() {
    ///     println!("{}: {} of {} gets were hits", group.name, group.stats.hits, group.stats.gets);
    /// }
    /// # }
    /// ```
    pub fn groups(&self) -> Vec<GroupInfo> {
        let mut groups: Vec<_> = self.inner.context.registry.all().iter().map(|group| group.info()).collect();
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        groups
    }

    /// Returns the loads of a group that run on this node, and the last 256 that have ended; `None` without the group.
    ///
    /// ```
    /// # fn f(node: &groupcache_core::Node) {
    /// for load in node.group_loads("users").into_iter().flat_map(|loads| loads.running) {
    ///     println!("{} has been loading for {:?}", load.key, load.age);
    /// }
    /// # }
    /// ```
    pub fn group_loads(&self, group: &str) -> Option<GroupLoads> {
        self.inner.context.registry.get(group).map(|group| group.loads())
    }
}
