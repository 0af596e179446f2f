//! Watch over the pings and the silence of one connection.

use std::collections::VecDeque;

use crate::limits::{IDLE_PING, PONG, QUIET, SILENCE};

/// Maximum number of pings without a pong. A further one waits until one of them is answered.
const MAX_PINGS: usize = 8;

/// Watch over pings and silence.
#[derive(Debug, Default)]
pub(super) struct SilenceWatch {
    last_ping: u64,
    /// Whether a ping is to be sent with the next frame.
    is_due: bool,
    /// Pings without a pong, each with the time at which it left.
    sent: VecDeque<(u64, u64)>,
    /// Time at which a ping left last.
    pinged_ms: u64,
    /// Whether a pong has come on the current connection.
    has_pong: bool,
    /// Time of the outstanding ping, or of the last pause of this process since.
    since_ms: Option<u64>,
    /// Time at which a sweep first found the due ping unsent.
    due_ms: Option<u64>,
    /// Time of the last pause of this process, or of the last answer; pongs are owed from then on at the earliest.
    paused_ms: u64,
    last_read_ms: u64,
    reads: u64,
}

impl SilenceWatch {
    /// Begins a connection, with a ping at once, because the first pong shows which writes this node lacks.
    pub(super) fn connected(&mut self, now_ms: u64) {
        self.sent.clear();
        (self.has_pong, self.is_due, self.since_ms, self.due_ms) = (false, true, None, None);
        self.reads += 1;
        self.last_read_ms = now_ms;
    }

    /// Records the end of the connection.
    pub(super) fn ended(&mut self) {
        (self.since_ms, self.is_due, self.due_ms) = (None, false, None);
    }

    /// Asks for a ping with the next frame.
    pub(super) fn ask(&mut self) {
        self.is_due = true;
    }

    /// Returns whether a frame is to be sent for a ping.
    pub(super) fn is_due(&self) -> bool {
        self.is_due && self.sent.len() < MAX_PINGS
    }

    /// Returns the number of the ping of a frame that leaves now, if the frame has one. The requests of a frame take a
    /// ping along if the peer was quiet.
    pub(super) fn take_ping(&mut self, has_requests: bool, now_ms: u64) -> Option<u64> {
        let is_quiet = || now_ms.saturating_sub(self.last_read_ms) >= QUIET.as_millis() as u64;
        let must_ping = self.is_due() || (has_requests && self.since_ms.is_none() && is_quiet());
        if !must_ping {
            return None;
        }
        (self.is_due, self.due_ms) = (false, None);
        self.last_ping += 1;
        self.since_ms = self.since_ms.or(Some(now_ms));
        self.pinged_ms = now_ms;
        self.sent.push_back((self.last_ping, now_ms));
        Some(self.last_ping)
    }

    /// Records that a frame was read. If the frame answers a ping, returns the time at which the ping left, and whether
    /// this is the first pong of the connection.
    pub(super) fn read(&mut self, now_ms: u64, pong: u64) -> Option<(u64, bool)> {
        self.reads += 1;
        self.heard(now_ms);
        if pong == self.last_ping {
            self.since_ms = None;
        }
        self.pong(pong)
    }

    /// Records that bytes arrived, even if they are not a whole frame yet.
    pub(super) fn heard(&mut self, now_ms: u64) {
        self.last_read_ms = now_ms;
        self.since_ms = self.since_ms.map(|_| now_ms);
    }

    /// Records that the peer answered a request, so that it reads what this node sends.
    pub(super) fn answered(&mut self, now_ms: u64) {
        self.paused_ms = now_ms;
    }

    /// Returns how often a frame was read.
    pub(super) fn reads(&self) -> u64 {
        self.reads
    }

    /// Takes a pong, and returns when its ping left, and whether the pong is the first one.
    fn pong(&mut self, number: u64) -> Option<(u64, bool)> {
        while let Some((sent, left_ms)) = self.sent.front().copied().filter(|(sent, _)| *sent <= number) {
            self.sent.pop_front();
            if sent == number {
                return Some((left_ms, !std::mem::replace(&mut self.has_pong, true)));
            }
        }
        None
    }

    /// Returns whether the peer may be silent. Runs every 10 ms.
    pub(super) fn sweep(&mut self, now_ms: u64, has_waiters: bool, we_stood_still: bool) -> bool {
        // A busy connection is pinged too, because pongs show which writes this node lacks.
        let is_owed = now_ms.saturating_sub(self.pinged_ms) >= IDLE_PING.as_millis() as u64;
        self.is_due |= is_owed && self.sent.is_empty();
        if self.is_due {
            self.due_ms.get_or_insert(now_ms);
        }
        if we_stood_still {
            self.paused_ms = now_ms;
        }
        let Some(since_ms) = self.since_ms else {
            let silent_for = now_ms.saturating_sub(self.last_read_ms);
            let ping_after = if has_waiters { QUIET } else { IDLE_PING };
            if silent_for >= ping_after.as_millis() as u64 {
                self.is_due = true;
                // Counted from when the ping is due, because a peer that reads nothing may keep it from ever being
                // sent.
                self.since_ms = Some(now_ms);
            }
            return false;
        };
        if we_stood_still {
            // Bytes that the peer sent meanwhile have not been read yet, so its second begins anew.
            self.since_ms = Some(now_ms);
            return false;
        }
        now_ms.saturating_sub(since_ms) >= SILENCE.as_millis() as u64
    }

    /// Returns whether the peer has not answered a ping for [`PONG`], or has not read one for that time, whatever else it
    /// has sent.
    pub(super) fn owes_pong(&self, now_ms: u64) -> bool {
        let sent_ms = self.sent.front().map(|(_, left_ms)| *left_ms);
        let oldest_ms = sent_ms.into_iter().chain(self.due_ms).min();
        oldest_ms.is_some_and(|ms| now_ms.saturating_sub(ms.max(self.paused_ms)) >= PONG.as_millis() as u64)
    }

    /// Returns whether no byte has come for the time of a silence while a ping was outstanding.
    pub(super) fn is_silent(&self, now_ms: u64) -> bool {
        self.since_ms.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= SILENCE.as_millis() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that a peer which answers requests owes no pong meanwhile, because it reads frames in their order.
    #[test]
    fn peer_that_answers_owes_no_pong() {
        let (mut watch, pong_ms) = (SilenceWatch::default(), PONG.as_millis() as u64);
        watch.connected(0);
        assert_eq!(watch.take_ping(false, 0), Some(1));
        watch.heard(pong_ms);
        assert!(watch.owes_pong(pong_ms), "bytes alone do not show that the peer reads");
        watch.answered(pong_ms - 1);
        assert!(!watch.owes_pong(pong_ms) && watch.owes_pong(2 * pong_ms));
    }

    /// Checks that a ping beyond the limit waits, so that no frame is sent for it, and that its pong is judged by its own
    /// departure.
    #[test]
    fn ping_beyond_the_limit_waits_for_a_pong() {
        let mut watch = SilenceWatch::default();
        watch.connected(0);
        for number in 1..=MAX_PINGS as u64 {
            watch.ask();
            assert!(watch.is_due());
            assert_eq!(watch.take_ping(false, 10 * number), Some(number));
        }
        watch.ask();
        assert_eq!((watch.is_due(), watch.take_ping(false, 100)), (false, None));
        assert_eq!(watch.read(100, 2), Some((20, true)));
        assert_eq!((watch.is_due(), watch.take_ping(false, 110)), (true, Some(9)));
        assert_eq!((watch.read(120, 9), watch.read(120, 3)), (Some((110, false)), None));
    }
}
