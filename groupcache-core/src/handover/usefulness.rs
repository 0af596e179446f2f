//! Whether it is worth asking a former owner: whether it has what it is asked for, and answers in time.

/// Questions that are judged together, and the answers among them that make the next ones worth it: two in a hundred.
const JUDGED: u32 = 256;
/// See [`JUDGED`].
const WORTH_IT: u32 = 5;
/// A former owner of whom so many first questions were all in vain has nothing: the cluster was started just now.
const GIVE_UP_AFTER_MISSES: u32 = 64;

/// Times in a row that a former owner may be late before there are pauses: a busy machine stands still for 20 ms now and
/// then. What was asked before it was found to be late counts with that.
const FREE_LATE: u32 = 3;
/// The pause after the last of those; it doubles with each further time.
const PAUSE_MS: u64 = 50;
/// With this one a peer is not asked again.
const MAX_LATE: u32 = 7;

/// Whether it is worth asking a former owner.
#[derive(Debug, Default)]
pub(crate) struct Usefulness {
    /// The number of the newest former view in which it owned something: with a newer one it is found out anew.
    pub(crate) number: u64,
    asked: u32,
    found: u32,
    is_judged: bool,
    /// Times in a row, and the last of them.
    late: u32,
    late_ms: u64,
    paused_until_ms: u64,
    pub(crate) is_over: bool,
}

impl Usefulness {
    /// To be found out.
    pub(crate) fn unknown(number: u64) -> Self {
        Self { number, ..Self::default() }
    }

    pub(crate) fn may_be_asked(&self, now_ms: u64) -> bool {
        !self.is_over && now_ms >= self.paused_until_ms
    }

    pub(crate) fn answered(&mut self, is_found: bool) {
        self.late = 0;
        self.asked += 1;
        self.found += u32::from(is_found);
        self.is_over |= !self.is_judged && self.found == 0 && self.asked >= GIVE_UP_AFTER_MISSES;
        if self.asked >= JUDGED {
            self.is_over |= self.found < WORTH_IT;
            (self.asked, self.found, self.is_judged) = (0, 0, true);
        }
    }

    pub(crate) fn was_late(&mut self, asked_ms: u64, now_ms: u64) {
        if asked_ms < self.late_ms {
            return;
        }
        self.late_ms = now_ms;
        self.late += 1;
        self.is_over |= self.late >= MAX_LATE;
        if self.late >= FREE_LATE {
            self.paused_until_ms = now_ms + (PAUSE_MS << (self.late - FREE_LATE).min(MAX_LATE));
        }
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use super::Usefulness;

    /// How often a former owner is asked of 600 times, that has an answer to one in so many questions.
    fn asked(one_in: Option<usize>) -> usize {
        let mut worth = Usefulness::default();
        (1..=600)
            .take_while(|n| {
                let may = worth.may_be_asked(0);
                worth.answered(one_in.is_some_and(|one_in| n % one_in == 0));
                may
            })
            .count()
    }

    #[test]
    fn who_has_nothing_or_next_to_nothing_is_left_alone_and_who_has_one_in_eight_is_asked_on() {
        assert_eq!((asked(None), asked(Some(64)), asked(Some(8))), (64, 256, 600));
    }
}
