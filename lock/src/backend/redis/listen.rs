//! One subscribing connection for all keys of a backend.
//!
//! It connects again by itself, subscribes again, and then wakes everyone once: what was published in
//! between is lost. With it dead nothing but latency suffers, since waiters also ask again by themselves.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use deadpool_redis::redis::{PushInfo, PushKind, Value, cmd};
use rand::Rng as _;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::link::{Connection, Dialer};
use crate::Owner;

/// Between two attempts to connect: the first and the longest wait. Chosen: a restarted Redis is back within
/// 30 ms, and a poll a second is no load.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// How often the connection is asked whether it lives, and subscriptions that nobody wants are ended.
/// Chosen: a waiter that comes back to the key within it costs no command.
const ROUND: Duration = Duration::from_secs(2);

/// Who listens to what.
#[derive(Debug, Default)]
struct Listeners {
    channels: HashMap<String, Vec<Listener>>,
    next: u64,
}

#[derive(Debug)]
struct Listener {
    id: u64,
    /// As it stands in a message that names the next in line.
    owner: String,
    count: Arc<watch::Sender<u64>>,
}

/// The listening half of a backend.
pub(super) struct Feed {
    dialer: Dialer,
    listeners: Arc<Mutex<Listeners>>,
    /// Channels to subscribe to, for the task that listens; closed when it ended with its runtime.
    wanted: Mutex<Option<mpsc::UnboundedSender<String>>>,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").finish_non_exhaustive()
    }
}

/// Ends the listening when it is dropped.
pub(super) struct Interest {
    listeners: Weak<Mutex<Listeners>>,
    channel: String,
    id: u64,
}

impl Drop for Interest {
    fn drop(&mut self) {
        let Some(listeners) = self.listeners.upgrade() else {
            return;
        };
        let mut listeners = lock(&listeners);
        if let Some(all) = listeners.channels.get_mut(&self.channel) {
            // The subscription itself is ended by the task, if nobody comes back.
            all.retain(|listener| listener.id != self.id);
        }
    }
}

impl Feed {
    pub(super) fn new(dialer: Dialer) -> Self {
        Self {
            dialer,
            listeners: Arc::default(),
            wanted: Mutex::new(None),
        }
    }

    /// Counts `count` up at every message on `channel` that concerns `owner`, and once when the subscription
    /// is in place.
    pub(super) fn listen(&self, channel: String, owner: Owner, count: Arc<watch::Sender<u64>>) -> Interest {
        let (id, is_new) = {
            let mut listeners = lock(&self.listeners);
            listeners.next += 1;
            let id = listeners.next;
            let is_new = !listeners.channels.contains_key(&channel);
            listeners
                .channels
                .entry(channel.clone())
                .or_default()
                .push(Listener {
                    id,
                    owner: owner.to_string(),
                    count,
                });
            (id, is_new)
        };
        self.want(&channel, is_new);
        Interest {
            listeners: Arc::downgrade(&self.listeners),
            channel,
            id,
        }
    }

    fn want(&self, channel: &str, is_new: bool) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(wanted) = wanted.as_ref().filter(|wanted| !wanted.is_closed()) {
            if is_new {
                let _ = wanted.send(channel.to_owned());
            }
            return;
        }
        // The first listener, or the runtime of the last task is gone: it subscribes to all channels there are.
        let (sender, receiver) = mpsc::unbounded_channel();
        let listeners = Arc::downgrade(&self.listeners);
        tokio::spawn(run(self.dialer.clone(), listeners, receiver));
        *wanted = Some(sender);
    }
}

/// Connects until the backend is dropped.
async fn run(dialer: Dialer, listeners: Weak<Mutex<Listeners>>, mut wanted: mpsc::UnboundedReceiver<String>) {
    let mut backoff = BACKOFF.0;
    while !wanted.is_closed() {
        let (pushes, pushed) = mpsc::unbounded_channel();
        if let Ok(connection) = dialer.dial(Some(pushes)).await {
            let lasted = session(connection, &listeners, &mut wanted, pushed).await;
            if lasted {
                backoff = BACKOFF.0;
            }
        }
        let jitter = rand::rng().random_range(0.5..1.0);
        tokio::select! {
            () = sleep(backoff.mul_f64(jitter)) => {}
            // What is asked for meanwhile is subscribed to with everything else.
            () = async { while wanted.recv().await.is_some() {} } => return,
        }
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// One connection until it breaks. Returns whether it ever worked.
async fn session(
    mut connection: Connection,
    listeners: &Weak<Mutex<Listeners>>,
    wanted: &mut mpsc::UnboundedReceiver<String>,
    mut pushed: mpsc::UnboundedReceiver<PushInfo>,
) -> bool {
    let Some(channels) = listeners
        .upgrade()
        .map(|listeners| lock(&listeners).channels.keys().cloned().collect::<Vec<_>>())
    else {
        return true;
    };
    for channel in &channels {
        if subscribe(&mut connection, channel).await.is_err() {
            return false;
        }
    }
    wake(listeners, |_| true);
    let mut round = interval(ROUND);
    round.set_missed_tick_behavior(MissedTickBehavior::Delay);
    round.tick().await;
    loop {
        tokio::select! {
            channel = wanted.recv() => {
                let Some(channel) = channel else { return true };
                if subscribe(&mut connection, &channel).await.is_err() {
                    return true;
                }
                wake(listeners, |of| of == channel);
            }
            push = pushed.recv() => {
                let Some(push) = push else { return true };
                let lost = push.kind == PushKind::Disconnection;
                dispatch(listeners, &push);
                if lost && matches!(connection, Connection::Node(_)) {
                    return true;
                }
                if lost {
                    // One node of the cluster; the client finds it again and subscribes again.
                    wake(listeners, |_| true);
                }
            }
            _ = round.tick() => {
                for channel in unwanted(listeners) {
                    let _ = unsubscribe(&mut connection, &channel).await;
                }
                if connection.query(&cmd("PING")).await.is_err() {
                    return true;
                }
            }
        }
    }
}

/// An error means that the connection is gone; a refusal (no permission) leaves the waiters to their polls.
async fn subscribe(connection: &mut Connection, channel: &str) -> Result<(), ()> {
    let subscribed = match connection {
        Connection::Node(connection) => connection.subscribe(channel).await,
        Connection::Cluster(connection) => connection.ssubscribe(channel).await,
    };
    match subscribed {
        Err(error) if error.is_io_error() || error.is_unrecoverable_error() => Err(()),
        Err(_) | Ok(()) => Ok(()),
    }
}

async fn unsubscribe(connection: &mut Connection, channel: &str) -> Result<(), ()> {
    let unsubscribed = match connection {
        Connection::Node(connection) => connection.unsubscribe(channel).await,
        Connection::Cluster(connection) => connection.sunsubscribe(channel).await,
    };
    unsubscribed.map_err(|_| ())
}

/// Takes channels without listeners off the list.
fn unwanted(listeners: &Weak<Mutex<Listeners>>) -> Vec<String> {
    let Some(listeners) = listeners.upgrade() else {
        return Vec::new();
    };
    let mut gone = Vec::new();
    lock(&listeners).channels.retain(|channel, all| {
        if all.is_empty() {
            gone.push(channel.clone());
        }
        !all.is_empty()
    });
    gone
}

/// Counts up for every listener on the channels chosen.
fn wake(listeners: &Weak<Mutex<Listeners>>, chosen: impl Fn(&str) -> bool) {
    let Some(listeners) = listeners.upgrade() else {
        return;
    };
    for (channel, all) in &lock(&listeners).channels {
        if chosen(channel) {
            for listener in all {
                listener.count.send_modify(|count| *count += 1);
            }
        }
    }
}

/// Hands a message to those it names: `*`, or owners with commas between.
fn dispatch(listeners: &Weak<Mutex<Listeners>>, push: &PushInfo) {
    if !matches!(push.kind, PushKind::Message | PushKind::SMessage) {
        return;
    }
    let [Value::BulkString(channel), Value::BulkString(named)] = push.data.as_slice() else {
        return;
    };
    let (Ok(channel), Ok(named)) = (std::str::from_utf8(channel), std::str::from_utf8(named)) else {
        return;
    };
    let Some(listeners) = listeners.upgrade() else {
        return;
    };
    let listeners = lock(&listeners);
    for listener in listeners.channels.get(channel).into_iter().flatten() {
        if named == "*" || named.split(',').any(|name| name == listener.owner) {
            listener.count.send_modify(|count| *count += 1);
        }
    }
}

fn lock(listeners: &Mutex<Listeners>) -> MutexGuard<'_, Listeners> {
    listeners.lock().unwrap_or_else(PoisonError::into_inner)
}
