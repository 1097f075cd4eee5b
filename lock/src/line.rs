//! The waiters of this process: one line a key, and only its head asks the service.
//!
//! A guard that is released here goes to the head of the line in the same round trip
//! ([`Backend::hand_over`](crate::Backend::hand_over)). Other processes wait for the same key at the
//! service, which knows this process by its head alone.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::backend::{Acquire, Class, Request, Shape, Wake};
use crate::error::Error;
use crate::key::Key;

/// How often in a row a lock without places goes from one waiter of this process to the next before
/// waiters elsewhere get a chance. Chosen: the pause then costs a hold of 1 ms less than a tenth.
const TURNS: u32 = 64;

/// How long this process then waits before it asks, at least, and in times of the release's round trip.
/// Chosen: a wake and a question of another process, with time to spare on a busy machine.
const YIELD: Duration = Duration::from_millis(5);
const YIELD_ROUND_TRIPS: u32 = 4;

/// An answer, and when its question was sent.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) sent: Instant,
    pub(crate) answer: Result<Acquire, Error>,
}

/// One waiter.
#[derive(Debug)]
pub(crate) struct Ticket {
    request: Request,
    state: Mutex<TicketState>,
    /// Told of everything that concerns this waiter.
    pub(crate) told: Notify,
}

#[derive(Debug, Default)]
struct TicketState {
    outcome: Outcome,
    handed: Option<Handed>,
    handing: bool,
    /// When to ask because the key was released here.
    ask_at: Option<Instant>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    #[default]
    Waiting,
    Granted,
    GaveUp,
}

/// What a resting waiter should do.
#[derive(Debug)]
pub(crate) enum News {
    /// Nothing, whatever others say, before this instant: it is being handed the key, or lets others go first.
    Quiet(Option<Instant>),
    /// Listen.
    None,
    /// Ask now.
    Ask,
    Handed(Handed),
}

impl Ticket {
    fn state(&self) -> MutexGuard<'_, TicketState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn request(&self) -> &Request {
        &self.request
    }

    /// The waiter asks: whatever was a reason to is behind it.
    pub(crate) fn asks(&self) {
        self.state().ask_at = None;
    }

    pub(crate) fn news(&self, now: Instant) -> News {
        let mut state = self.state();
        if let Some(handed) = state.handed.take() {
            return News::Handed(handed);
        }
        match state.ask_at {
            _ if state.handing => News::Quiet(None),
            Some(at) if at <= now => News::Ask,
            Some(at) => News::Quiet(Some(at)),
            None => News::None,
        }
    }
}

#[derive(Debug, Default)]
struct Line {
    queue: VecDeque<Arc<Ticket>>,
    /// Guards of this process that let nobody else in.
    held: usize,
    turns: u32,
    wake: Option<Wake>,
}

/// The lines of a process.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    lines: Mutex<HashMap<(Key, Class), Line>>,
}

fn name(request: &Request) -> (Key, Class) {
    (request.key.clone(), request.shape.class())
}

fn excludes(shape: Shape) -> bool {
    matches!(shape, Shape::Exclusive | Shape::Write)
}

impl Lines {
    /// No holder of this mutex runs foreign code, so a poisoned one holds a sound state.
    fn lines(&self) -> MutexGuard<'_, HashMap<(Key, Class), Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place at the end of the line.
    pub(crate) fn join(&self, request: Request) -> Arc<Ticket> {
        let name = name(&request);
        let ticket = Arc::new(Ticket {
            request,
            state: Mutex::default(),
            told: Notify::new(),
        });
        let mut lines = self.lines();
        lines
            .entry(name)
            .or_default()
            .queue
            .push_back(Arc::clone(&ticket));
        ticket
    }

    /// Leaves the line, granted or not, and gives the head's listener to the next one. Whether an answer
    /// lay there that nobody has looked at.
    pub(crate) fn part(&self, ticket: &Arc<Ticket>, granted: bool, wake: Option<Wake>) -> bool {
        let mut state = ticket.state();
        state.outcome = if granted {
            Outcome::Granted
        } else {
            Outcome::GaveUp
        };
        let unread = state.handed.take().is_some();
        drop(state);
        let mut lines = self.lines();
        let name = name(&ticket.request);
        let Some(line) = lines.get_mut(&name) else {
            return unread;
        };
        let was_head = line.is_head(ticket);
        line.queue.retain(|other| !Arc::ptr_eq(other, ticket));
        if wake.is_some() {
            line.wake = wake;
        }
        if was_head && let Some(head) = line.queue.front() {
            head.told.notify_one();
        }
        let gone = forget(&mut lines, &name);
        drop(lines);
        drop(gone);
        unread
    }

    /// Whether this waiter is the head of its line.
    pub(crate) fn is_head(&self, ticket: &Arc<Ticket>) -> bool {
        self.lines()
            .get(&name(&ticket.request))
            .is_some_and(|line| line.is_head(ticket))
    }

    /// Whether somebody waits in this process already.
    pub(crate) fn is_waited_for(&self, request: &Request) -> bool {
        self.lines()
            .get(&name(request))
            .is_some_and(|line| !line.queue.is_empty())
    }

    /// Whether a guard of this process lets nobody in, so that asking can wait for its release.
    pub(crate) fn is_held_here(&self, request: &Request) -> bool {
        self.lines().get(&name(request)).is_some_and(|line| line.held > 0)
    }

    /// The listener that the head before left behind.
    pub(crate) fn wake(&self, request: &Request) -> Option<Wake> {
        self.lines().get_mut(&name(request))?.wake.take()
    }

    /// A guard was made.
    pub(crate) fn granted(&self, request: &Request) {
        if excludes(request.shape) {
            self.lines().entry(name(request)).or_default().held += 1;
        }
    }

    /// Who is asked for together with the release of `held`: the head of the line, unless it is time to let
    /// others go first. It may be asking by itself as well: both questions are one owner's.
    pub(crate) fn heir(&self, held: &Request) -> Option<Arc<Ticket>> {
        let mut lines = self.lines();
        let line = lines.get_mut(&name(held))?;
        let head = line.queue.front()?;
        if head.request.place.is_none() && line.turns >= TURNS {
            return None;
        }
        let mut state = head.state();
        if state.handing || state.handed.is_some() {
            return None;
        }
        state.handing = true;
        drop(state);
        line.turns += 1;
        Some(Arc::clone(head))
    }

    /// Gives the answer to the waiter it was asked for. What nobody waits for any more is
    /// returned, to be left.
    pub(crate) fn hand(&self, heir: &Arc<Ticket>, handed: Handed) -> Option<Request> {
        let mut state = heir.state();
        state.handing = false;
        match state.outcome {
            Outcome::Waiting => {
                state.handed = Some(handed);
                drop(state);
                heir.told.notify_one();
                None
            }
            // It asked by itself as well, and was given the same grant, which must not be taken from it.
            Outcome::Granted => None,
            Outcome::GaveUp => Some(heir.request.clone()),
        }
    }

    /// A guard has ended, after a round trip of `took`: whoever was not handed the key asks for it.
    pub(crate) fn released(&self, held: &Request, took: Duration) {
        let name = name(held);
        let mut lines = self.lines();
        let Some(line) = lines.get_mut(&name) else {
            return;
        };
        if excludes(held.shape) {
            line.held = line.held.saturating_sub(1);
        }
        if let Some(head) = line.queue.front() {
            let mut state = head.state();
            if !state.handing && state.handed.is_none() {
                let pause = if line.turns >= TURNS {
                    YIELD.max(took * YIELD_ROUND_TRIPS)
                } else {
                    Duration::ZERO
                };
                line.turns = 0;
                state.ask_at = Some(Instant::now() + pause);
                drop(state);
                head.told.notify_one();
            }
        }
        let gone = forget(&mut lines, &name);
        drop(lines);
        drop(gone);
    }
}

impl Line {
    fn is_head(&self, ticket: &Arc<Ticket>) -> bool {
        self.queue.front().is_some_and(|head| Arc::ptr_eq(head, ticket))
    }
}

/// A key that nobody waits for or holds here takes no memory. What is returned ends its listening when it is
/// dropped, after the mutex.
fn forget(lines: &mut HashMap<(Key, Class), Line>, name: &(Key, Class)) -> Option<Line> {
    let idle = |line: &Line| line.queue.is_empty() && line.held == 0;
    if lines.get(name).is_some_and(idle) {
        return lines.remove(name);
    }
    None
}
