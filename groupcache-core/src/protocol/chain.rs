//! The load chain as it travels with a request: on whose behalf something is asked.

use std::sync::Arc;

use crate::limits::MAX_CHAIN;

/// Hashes that travel with a request: the deepest nesting, and as many joiners.
pub(crate) const MAX_HASHES: usize = 2 * MAX_CHAIN;

/// The loads on whose behalf something is asked, and how deep they are nested.
///
/// Most gets are asked for by callers and serve no load: theirs is a null pointer, since it is handed from the get to
/// the fetch and on to the request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LoadChain(Option<Arc<Hashes>>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Hashes {
    /// How deep a load begun for it is nested; 0 = asked for by a caller.
    depth: u8,
    len: u8,
    /// Outermost first; those that joined come last and give way first.
    hashes: [u64; MAX_HASHES],
}

impl Hashes {
    /// Adds a hash unless there is no room.
    fn add(&mut self, hash: u64) {
        if let Some(place) = self.hashes.get_mut(usize::from(self.len)) {
            *place = hash;
            self.len += 1;
        }
    }
}

impl LoadChain {
    pub(crate) const EMPTY: Self = Self(None);

    /// The first of them, as many as fit.
    pub(crate) fn of(depth: u32, hashes: impl IntoIterator<Item = u64>) -> Self {
        let mut served = Hashes { depth: u8::try_from(depth).unwrap_or(u8::MAX), ..Hashes::default() };
        hashes.into_iter().take(MAX_HASHES).for_each(|hash| served.add(hash));
        if served == Hashes::default() { Self::EMPTY } else { Self(Some(Arc::new(served))) }
    }

    fn served(&mut self) -> &mut Hashes {
        Arc::make_mut(self.0.get_or_insert_default())
    }

    /// As it is for a load of `hash` begun for it. That hash matters more than the last of those who joined a caller of it.
    pub(crate) fn with_load(&self, hash: u64) -> Self {
        let mut chain = self.clone();
        let served = chain.served();
        served.len = served.len.min(MAX_HASHES as u8 - 1);
        served.add(hash);
        chain
    }

    /// Nested so deep.
    pub(crate) fn at_depth(mut self, depth: usize) -> Self {
        self.served().depth = u8::try_from(depth).unwrap_or(u8::MAX);
        self
    }

    /// Adds a hash unless there is no room.
    pub(crate) fn add(&mut self, hash: u64) {
        self.served().add(hash);
    }

    pub(crate) fn as_slice(&self) -> &[u64] {
        self.0.as_ref().and_then(|served| served.hashes.get(..usize::from(served.len))).unwrap_or_default()
    }

    pub(crate) fn contains(&self, hash: u64) -> bool {
        self.as_slice().contains(&hash)
    }

    pub(crate) fn depth(&self) -> usize {
        self.0.as_ref().map_or(0, |served| usize::from(served.depth))
    }
}
