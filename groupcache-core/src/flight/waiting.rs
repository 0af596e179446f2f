//! Waiters: the callers that wait for the outcome of a flight. The first waiter takes no allocation, because most
//! flights have one.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use crate::flight::Flight;
use crate::runtime::sync::Mutex;

/// Wakers of the waiters of a flight.
#[derive(Debug, Default)]
pub(super) struct Waiters(Mutex<Places>);

/// Wakers of the waiters, each in a place of its own. A waiter knows the number of its place, so that no step searches,
/// because a flight of a hot key may have 100,000 waiters. The first place is outside of the vector and needs no
/// allocation.
#[derive(Debug, Default)]
struct Places {
    first: Option<Waker>,
    more: Vec<Place>,
    /// Number of the free place that was left last, which leads to all other free places; `FIRST` for none.
    free: usize,
}

/// Number of the first place. Place `n` above 0 is at index `n - 1` of the vector.
const FIRST: usize = 0;

/// Place of one waiter beside the first.
#[derive(Debug)]
enum Place {
    Taken(Waker),
    /// Free place, with the number of the next one.
    Free(usize),
}

impl Places {
    /// Puts a waker into the place of its waiter, or into a free one. Returns the number of the place and the previous
    /// waker, which the caller drops outside of the lock, because a task may end with its waker.
    fn put(&mut self, number: Option<usize>, waker: &Waker) -> (usize, Option<Waker>) {
        let Some(number) = number else { return (self.take_place(waker.clone()), None) };
        let known = match number {
            FIRST => self.first.as_mut(),
            _ => self.more.get_mut(number - 1).and_then(|place| match place {
                Place::Taken(waker) => Some(waker),
                Place::Free(_) => None,
            }),
        };
        match known {
            Some(known) if known.will_wake(waker) => (number, None),
            Some(known) => (number, Some(std::mem::replace(known, waker.clone()))),
            None => (self.take_place(waker.clone()), None), // not reached: a waiter keeps its place until it leaves
        }
    }

    /// Puts a waker into a free place, and returns its number.
    fn take_place(&mut self, waker: Waker) -> usize {
        if self.first.is_none() {
            self.first = Some(waker);
            return FIRST;
        }
        let free = self.free;
        match free.checked_sub(1).and_then(|at| self.more.get_mut(at)) {
            Some(place) => {
                if let Place::Free(next) = std::mem::replace(place, Place::Taken(waker)) {
                    self.free = next;
                }
                free
            }
            None => {
                self.more.push(Place::Taken(waker));
                self.more.len()
            }
        }
    }

    /// Frees a place and returns its waker; `None` when the waiters were woken meanwhile.
    fn leave(&mut self, number: usize) -> Option<Waker> {
        let Some(at) = number.checked_sub(1) else { return self.first.take() };
        let place = self.more.get_mut(at)?;
        if let Place::Free(_) = place {
            return None;
        }
        let Place::Taken(waker) = std::mem::replace(place, Place::Free(self.free)) else { return None };
        self.free = number;
        Some(waker)
    }
}

impl Waiters {
    /// Wakes all waiters. A later waiter finds the outcome.
    pub(super) fn wake(&self) {
        let Places { first, more, .. } = std::mem::take(&mut *self.0.lock());
        let more = more.into_iter().filter_map(|place| match place {
            Place::Taken(waker) => Some(waker),
            Place::Free(_) => None,
        });
        first.into_iter().chain(more).for_each(Waker::wake);
    }
}

/// Future of the outcome of a flight. Dropping the future leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Waiting<'a, O, C> {
    flight: &'a Flight<O, C>,
    /// Number of the place of the waiter, once it has one.
    place: Option<usize>,
}

impl<'a, O, C> Waiting<'a, O, C> {
    pub(super) fn new(flight: &'a Flight<O, C>) -> Self {
        Self { flight, place: None }
    }
}

impl<O: Clone, C> Future for Waiting<'_, O, C> {
    type Output = O;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<O> {
        let flight = self.flight;
        if let Some(outcome) = flight.outcome.get() {
            return Poll::Ready(outcome.clone());
        }
        let mut places = flight.waiters.0.lock();
        // The outcome is set before the waiters are taken out, so that a waiter that finds no outcome here is woken.
        if let Some(outcome) = flight.outcome.get() {
            drop(places);
            return Poll::Ready(outcome.clone());
        }
        let (place, replaced) = places.put(self.place, cx.waker());
        drop(places);
        drop(replaced);
        self.place = Some(place);
        Poll::Pending
    }
}

impl<O, C> Drop for Waiting<'_, O, C> {
    fn drop(&mut self) {
        if let Some(place) = self.place
            && self.flight.outcome.get().is_none()
        {
            let waker = self.flight.waiters.0.lock().leave(place);
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

    /// Checks that the work of a waiter does not grow with the number of waiters. The test takes far less
    /// than a second, and with a search would take more than a minute.
    #[test]
    fn many_waiters_are_registered_and_dropped_at_once() {
        const MANY: usize = 100_000;
        let (flights, flight) = flight();
        let woken = Arc::<Woken>::default();
        let waker = Waker::from(Arc::clone(&woken));
        let mut waiting: Vec<_> = (0..MANY).map(|_| Box::pin(flight.outcome())).collect();
        let begun = tokio::time::Instant::now();
        for round in 0..3 {
            for waiting in &mut waiting {
                assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            }
            println!("round {round} of {MANY} waiters after {:?}", begun.elapsed());
        }
        let kept = waiting.split_off(MANY - 3);
        drop(waiting);
        let took = begun.elapsed();
        println!("dropped after {took:?}");
        flights.complete(&flight, 5, 0, || ());
        assert_eq!((woken.times(), kept.len()), (3, 3));
        assert!(took < std::time::Duration::from_secs(15), "{took:?}");
    }

    /// Checks that a place which a waiter has left is taken again, whether it is the first one or not, and that nobody
    /// loses a place to another waiter.
    #[test]
    fn left_places_are_taken_again() {
        let (flights, flight) = flight();
        let woken: Vec<_> = (0..8).map(|_| Arc::<Woken>::default()).collect();
        let mut waiting: Vec<_> = woken.iter().map(|_| Some(Box::pin(flight.outcome()))).collect();
        for round in 0..20 {
            for (at, (waiting, woken)) in waiting.iter_mut().zip(&woken).enumerate() {
                if (at + round) % 3 == 0 {
                    *waiting = None;
                }
                assert!(poll(waiting.get_or_insert_with(|| Box::pin(flight.outcome())), woken).is_pending());
            }
        }
        assert!(flight.waiters.0.lock().more.len() < woken.len());
        flights.complete(&flight, 5, 0, || ());
        assert!(woken.iter().all(|woken| woken.times() == 1 && Arc::strong_count(woken) == 1));
    }
}
