//! Topics and their partitions: append logs, and the window of known ids.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use tokio::time::Instant;

use super::group::Group;
use super::{Faults, MemoryConfig};
use crate::{Malformed, Message, MessageId, Start};

/// Everything behind the broker's lock.
pub(super) struct State {
    config: MemoryConfig,
    topics: HashMap<String, Topic>,
    bytes: usize,
    pub(super) faults: Faults,
}

struct Topic {
    partitions: Vec<Partition>,
    groups: HashMap<String, Group>,
    ids: IdWindow,
    next_keyless: usize,
}

/// An append log whose acknowledged front is cut off.
#[derive(Default)]
pub(super) struct Partition {
    /// Offset of the first entry held.
    pub(super) base: u64,
    pub(super) entries: VecDeque<Entry>,
}

pub(super) struct Entry {
    pub(super) content: Result<Message, Malformed>,
    /// Hash of the ordering key. Two keys with one hash wait for each other, which costs time and not order.
    pub(super) key: Option<u64>,
    pub(super) appended: Instant,
    size: usize,
}

impl Partition {
    /// Offset the next entry gets.
    pub(super) fn end(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    pub(super) fn entry(&self, offset: u64) -> Option<&Entry> {
        let index = usize::try_from(offset.checked_sub(self.base)?).ok()?;
        self.entries.get(index)
    }
}

impl State {
    pub(super) fn new(config: MemoryConfig) -> Self {
        Self {
            config,
            topics: HashMap::new(),
            bytes: 0,
            faults: Faults::default(),
        }
    }

    /// Whether `bytes` more would exceed the capacity.
    pub(super) fn is_full(&self, bytes: usize) -> bool {
        self.bytes.saturating_add(bytes) > self.config.capacity_bytes
    }

    /// Whether some group reads `topic`.
    pub(super) fn is_read(&self, topic: &str) -> bool {
        self.topics
            .get(topic)
            .is_some_and(|topic| !topic.groups.is_empty())
    }

    /// Whether `id` was published to `topic` before, as far as the window remembers.
    pub(super) fn is_known(&self, topic: &str, id: MessageId) -> bool {
        self.topics.get(topic).is_some_and(|topic| topic.ids.contains(id))
    }

    /// Appends to the log and answers with partition and offset.
    pub(super) fn append(
        &mut self,
        topic: &str,
        content: Result<Message, Malformed>,
        now: Instant,
    ) -> (usize, u64) {
        let dedup_ids = self.config.dedup_ids;
        let topic = topic_of(&mut self.topics, &self.config, topic);
        if let Ok(message) = &content {
            topic.ids.insert(message.id, dedup_ids);
        }
        let key = content
            .as_ref()
            .ok()
            .and_then(|message| message.key.as_deref())
            .map(hash);
        let index = match key {
            Some(key) => usize::try_from(key % topic.partitions.len() as u64).unwrap_or(0),
            None => {
                topic.next_keyless = (topic.next_keyless + 1) % topic.partitions.len();
                topic.next_keyless
            }
        };
        let size = content
            .as_ref()
            .map_or_else(|malformed| malformed.body.len(), Message::size);
        self.bytes += size;
        let partition = &mut topic.partitions[index];
        let offset = partition.end();
        partition.entries.push_back(Entry {
            content,
            key,
            appended: now,
            size,
        });
        (index, offset)
    }

    /// Wakes whoever waits for messages of `topic`.
    pub(super) fn wake(&self, topic: &str) {
        if let Some(topic) = self.topics.get(topic) {
            topic.groups.values().for_each(Group::wake);
        }
    }

    pub(super) fn group(&self, topic: &str, group: &str) -> Option<&Group> {
        self.topics.get(topic)?.groups.get(group)
    }

    /// The group and the log it reads.
    pub(super) fn group_mut(&mut self, topic: &str, group: &str) -> Option<(&mut Group, &[Partition])> {
        let topic = self.topics.get_mut(topic)?;
        Some((topic.groups.get_mut(group)?, &topic.partitions))
    }

    /// The group, created at `start` if it is new.
    pub(super) fn join(&mut self, topic: &str, group: &str, start: Start) -> &mut Group {
        let dead_letters = self.config.dead_letters;
        let topic = topic_of(&mut self.topics, &self.config, topic);
        let partitions = &topic.partitions;
        topic.groups.entry(group.to_owned()).or_insert_with(|| {
            let cursors = partitions.iter().map(|partition| match start {
                Start::Earliest => partition.base,
                Start::Latest => partition.end(),
            });
            Group::new(cursors, dead_letters)
        })
    }

    /// Cuts off what every group of `topic` has acknowledged, beyond the retained number.
    pub(super) fn trim(&mut self, topic: &str) {
        let Some(topic) = self.topics.get_mut(topic) else {
            return;
        };
        for (index, partition) in topic.partitions.iter_mut().enumerate() {
            let Some(floor) = topic.groups.values().map(|group| group.floor(index)).min() else {
                return;
            };
            let keep_from = floor.saturating_sub(self.config.retained_messages as u64);
            while partition.base < keep_from
                && let Some(entry) = partition.entries.pop_front()
            {
                partition.base += 1;
                self.bytes = self.bytes.saturating_sub(entry.size);
            }
        }
    }

    pub(super) fn held(&self, topic: &str) -> usize {
        self.topics.get(topic).map_or(0, |topic| {
            topic
                .partitions
                .iter()
                .map(|partition| partition.entries.len())
                .sum()
        })
    }
}

fn topic_of<'a>(topics: &'a mut HashMap<String, Topic>, config: &MemoryConfig, name: &str) -> &'a mut Topic {
    // The name is copied only for a new topic.
    if !topics.contains_key(name) {
        let partitions = (0..config.partitions).map(|_| Partition::default()).collect();
        topics.insert(
            name.to_owned(),
            Topic {
                partitions,
                groups: HashMap::new(),
                ids: IdWindow::default(),
                next_keyless: 0,
            },
        );
    }
    #[expect(clippy::expect_used, reason = "inserted above")]
    topics.get_mut(name).expect("the topic was inserted above")
}

fn hash(key: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// The last ids of a topic.
#[derive(Default)]
struct IdWindow {
    known: HashSet<MessageId>,
    order: VecDeque<MessageId>,
}

impl IdWindow {
    fn contains(&self, id: MessageId) -> bool {
        self.known.contains(&id)
    }

    fn insert(&mut self, id: MessageId, limit: usize) {
        if limit == 0 || !self.known.insert(id) {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > limit
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}
