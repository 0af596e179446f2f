//! Usefulness of a previous owner: whether it has the requested values, and whether it responds in time.

/// Number of responses that are judged together.
const SAMPLE: u32 = 256;
/// Minimum number of values among [`SAMPLE`] responses, about 2 %. With fewer, the previous owner is not asked again.
const MIN_FOUND: u32 = 5;
/// Number of misses in a row from the first request on, after which a previous owner is assumed to hold nothing, as in
/// a freshly started cluster.
const GIVE_UP_AFTER_MISSES: u32 = 64;

/// Number of late responses in a row after which requests pause. A busy machine stands still for 20 ms now and then, so
/// that fewer mean nothing. Requests that were sent before the peer was found to be late count with that one.
const LATE_BEFORE_PAUSE: u32 = 3;
/// First pause, in milliseconds. The pause doubles with each further late response.
const PAUSE_MS: u64 = 50;
/// Number of late responses in a row after which a peer is not asked again.
const MAX_LATE: u32 = 7;

/// Record of the requests to one previous owner of a group.
#[derive(Debug, Default)]
pub(crate) struct Usefulness {
    /// Number of the newest previous view in which the peer owned keys. A newer number starts a new record.
    pub(crate) number: u64,
    /// Number of responses in this sample.
    asked: u32,
    /// Number of values among them.
    found: u32,
    /// Whether a whole sample has been judged.
    is_judged: bool,
    /// Number of late responses in a row.
    late: u32,
    /// Coarse time at which the last of them was found to be late.
    late_ms: u64,
    paused_until_ms: u64,
    /// Whether the peer is not asked again.
    pub(crate) is_over: bool,
}

impl Usefulness {
    /// Makes an empty record for the previous view of that number.
    pub(crate) fn unknown(number: u64) -> Self {
        Self { number, ..Self::default() }
    }

    /// Returns whether the peer may be asked now.
    pub(crate) fn may_be_asked(&self, now_ms: u64) -> bool {
        !self.is_over && now_ms >= self.paused_until_ms
    }

    /// Records a response in time, with or without a value.
    pub(crate) fn answered(&mut self, is_found: bool) {
        self.late = 0;
        self.asked += 1;
        self.found += u32::from(is_found);
        self.is_over |= !self.is_judged && self.found == 0 && self.asked >= GIVE_UP_AFTER_MISSES;
        if self.asked >= SAMPLE {
            self.is_over |= self.found < MIN_FOUND;
            (self.asked, self.found, self.is_judged) = (0, 0, true);
        }
    }

    /// Records that a request of `asked_ms` had no response in time.
    pub(crate) fn was_late(&mut self, asked_ms: u64, now_ms: u64) {
        if asked_ms < self.late_ms {
            return;
        }
        self.late_ms = now_ms;
        self.late += 1;
        self.is_over |= self.late >= MAX_LATE;
        if self.late >= LATE_BEFORE_PAUSE {
            self.paused_until_ms = now_ms + (PAUSE_MS << (self.late - LATE_BEFORE_PAUSE).min(MAX_LATE));
        }
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use super::Usefulness;

    /// Returns how many of 600 requests are sent to a previous owner that has one value per `one_in` requests, or none.
    fn asked(one_in: Option<usize>) -> usize {
        let mut usefulness = Usefulness::default();
        (1..=600)
            .take_while(|n| {
                let may = usefulness.may_be_asked(0);
                usefulness.answered(one_in.is_some_and(|one_in| n % one_in == 0));
                may
            })
            .count()
    }

    /// Checks that a previous owner without values is asked 64 times, one with a value in 64 requests 256 times, and
    /// one with a value in 8 requests always.
    #[test]
    fn previous_owner_with_few_values_is_not_asked_again() {
        assert_eq!((asked(None), asked(Some(64)), asked(Some(8))), (64, 256, 600));
    }
}
