//! Waiters: the callers that wait for the outcome of a flight. The first waiter takes no allocation, because most
//! flights have one.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use crate::flight::Flight;
use crate::runtime::sync::Mutex;

/// Wakers of the waiters of a flight, each with a number.
#[derive(Debug, Default)]
pub(super) struct Waiters(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    next: u64,
    first: Option<(u64, Waker)>,
    more: Vec<(u64, Waker)>,
}

impl List {
    /// Puts a waker into the list, and returns its number and the waker that it replaces. The caller drops the latter
    /// outside of the lock, because a task may end with its waker.
    fn put(&mut self, number: Option<u64>, waker: &Waker) -> (u64, Option<Waker>) {
        let known = number.and_then(|number| self.first.iter_mut().chain(&mut self.more).find(|(n, _)| *n == number));
        if let Some((number, known)) = known {
            let has_moved = !known.will_wake(waker);
            return (*number, has_moved.then(|| std::mem::replace(known, waker.clone())));
        }
        self.next += 1;
        let entry = (self.next, waker.clone());
        match &mut self.first {
            None => self.first = Some(entry),
            Some(_) => self.more.push(entry),
        }
        (self.next, None)
    }

    fn take(&mut self, number: u64) -> Option<(u64, Waker)> {
        if let Some(first) = self.first.take_if(|(n, _)| *n == number) {
            return Some(first);
        }
        let at = self.more.iter().position(|(n, _)| *n == number)?;
        Some(self.more.swap_remove(at))
    }
}

impl Waiters {
    /// Wakes all waiters. A later waiter finds the outcome.
    pub(super) fn wake(&self) {
        let (first, more) = {
            let mut list = self.0.lock();
            (list.first.take(), std::mem::take(&mut list.more))
        };
        first.into_iter().chain(more).for_each(|(_, waker)| waker.wake());
    }
}

/// Future of the outcome of a flight. Dropping the future leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Waiting<'a, O, C> {
    flight: &'a Flight<O, C>,
    number: Option<u64>,
}

impl<'a, O, C> Waiting<'a, O, C> {
    pub(super) fn new(flight: &'a Flight<O, C>) -> Self {
        Self { flight, number: None }
    }
}

impl<O: Clone, C> Future for Waiting<'_, O, C> {
    type Output = O;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<O> {
        let flight = self.flight;
        if let Some(outcome) = flight.outcome.get() {
            return Poll::Ready(outcome.clone());
        }
        let mut list = flight.waiters.0.lock();
        // The outcome is set before the waiters are taken out, so that a waiter that finds no outcome here is woken.
        if let Some(outcome) = flight.outcome.get() {
            drop(list);
            return Poll::Ready(outcome.clone());
        }
        let (number, replaced) = list.put(self.number, cx.waker());
        drop(list);
        drop(replaced);
        self.number = Some(number);
        Poll::Pending
    }
}

impl<O, C> Drop for Waiting<'_, O, C> {
    fn drop(&mut self) {
        if let Some(number) = self.number
            && self.flight.outcome.get().is_none()
        {
            let waker = self.flight.waiters.0.lock().take(number);
            drop(waker); // outside of the lock
        }
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering::Relaxed},
        },
        task::Wake,
    };

    use super::*;
    use crate::flight::{Flights, InvalidationStripes, Join, Kind};

    /// Waker that counts.
    #[derive(Default)]
    struct Woken(AtomicU64);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    impl Woken {
        fn times(&self) -> u64 {
            self.0.load(Relaxed)
        }
    }

    fn flight() -> (Flights<u32, ()>, Arc<Flight<u32, ()>>) {
        let flights = Flights::new(Arc::new(InvalidationStripes::new()), 7);
        let Join::Started(flight) = flights.join(Kind::Load, "k", 0, |()| true, || None::<()>, || ()) else {
            panic!("expected a new flight")
        };
        (flights, flight)
    }

    fn poll<F: Future>(future: &mut Pin<Box<F>>, woken: &Arc<Woken>) -> Poll<F::Output> {
        future.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::clone(woken))))
    }

    #[test]
    fn waiters_polled_repeatedly_are_woken_once() {
        let (flights, flight) = flight();
        let woken: Vec<_> = (0..5).map(|_| Arc::<Woken>::default()).collect();
        let mut waiting: Vec<_> = woken.iter().map(|_| Box::pin(flight.outcome())).collect();
        for _ in 0..3 {
            assert!(waiting.iter_mut().zip(&woken).all(|(waiting, woken)| poll(waiting, woken).is_pending()));
        }
        flights.complete(&flight, 5, 0, || ());
        assert!(woken.iter().all(|woken| woken.times() == 1));
        assert!(waiting.iter_mut().zip(&woken).all(|(waiting, woken)| poll(waiting, woken) == Poll::Ready(5)));
        assert_eq!(
            poll(&mut Box::pin(flight.outcome()), &woken[0]),
            Poll::Ready(5),
            "a later waiter finds the outcome"
        );
    }

    #[test]
    fn dropped_waiter_is_not_woken_and_others_are() {
        let (flights, flight) = flight();
        let woken: Vec<_> = (0..4).map(|_| Arc::<Woken>::default()).collect();
        let mut waiting: Vec<_> = woken.iter().map(|_| Box::pin(flight.outcome())).collect();
        assert!(waiting.iter_mut().zip(&woken).all(|(waiting, woken)| poll(waiting, woken).is_pending()));
        drop(waiting.remove(2));
        drop(waiting.remove(0));
        flights.complete(&flight, 5, 0, || ());
        assert_eq!(woken.iter().map(|woken| woken.times()).collect::<Vec<_>>(), [0, 1, 0, 1]);
        assert_eq!(Arc::strong_count(&woken[0]), 1, "the list has no waker of a dropped waiter");
    }

    #[test]
    fn waiter_moved_to_other_task_is_woken_there() {
        let (flights, flight) = flight();
        let (before, after) = (Arc::<Woken>::default(), Arc::<Woken>::default());
        let mut waiting = Box::pin(flight.outcome());
        assert!(poll(&mut waiting, &before).is_pending() && poll(&mut waiting, &after).is_pending());
        flights.complete(&flight, 5, 0, || ());
        assert_eq!((before.times(), after.times()), (0, 1));
    }
}
