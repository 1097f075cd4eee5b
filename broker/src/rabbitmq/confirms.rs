//! The unconfirmed messages of one channel, and what became of them.

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::task::Poll;

use futures::poll;
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::time::{Instant, timeout_at};

use super::RabbitMqConfig;
use super::error::{Failure, is_precondition};
use crate::{Error, ErrorKind, Message, Outcome, Receipt};

/// A message ready to go.
pub(super) struct Outgoing {
    /// Its place in the batch.
    pub(super) index: usize,
    /// The routing key.
    pub(super) topic: ShortString,
    pub(super) properties: BasicProperties,
}

/// A window of unconfirmed messages on a channel that this call has to itself.
pub(super) struct Confirms<'a> {
    channel: &'a Channel,
    config: &'a RabbitMqConfig,
    deadline: Instant,
    under_way: VecDeque<UnderWay<'a>>,
    bytes: usize,
    ended: Vec<(usize, End)>,
    /// Id and routing key of what came back. lapin hands a return to whichever confirm completes next.
    returned: HashSet<(String, String)>,
    failure: Option<Failure>,
    /// The deadline passed before every confirm was in.
    pub(super) late: bool,
}

struct UnderWay<'a> {
    index: usize,
    bytes: usize,
    confirmation: Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send + 'a>>,
}

enum End {
    Acked,
    Nacked,
    Failed(Failure),
}

impl<'a> Confirms<'a> {
    pub(super) fn new(channel: &'a Channel, config: &'a RabbitMqConfig, deadline: Instant) -> Self {
        Self {
            channel,
            config,
            deadline,
            under_way: VecDeque::new(),
            bytes: 0,
            ended: Vec::new(),
            returned: HashSet::new(),
            failure: None,
            late: false,
        }
    }

    /// Sends in order, as far as the window and the channel allow, and waits for every confirm.
    pub(super) async fn send(&mut self, batch: &'a [Message], outgoing: Vec<Outgoing>) {
        self.ended.reserve(outgoing.len());
        for Outgoing {
            index,
            topic,
            properties,
        } in outgoing
        {
            let payload = &batch[index].payload;
            while !self.under_way.is_empty()
                && (self.under_way.len() >= self.config.window
                    || self.bytes + payload.len() > self.config.window_bytes)
            {
                self.wait_for_oldest().await;
            }
            if self.failure.is_some() {
                break; // the rest stays without an outcome: it was not sent
            }
            let exchange = self.config.exchange.as_str().into();
            let mut confirmation = Box::pin(publish(self.channel, exchange, topic, payload, properties));
            // The first poll hands the frames to the connection, in this order. Nobody waits, message by
            // message, until they are written: that is what makes this faster than a plain loop.
            match poll!(&mut confirmation) {
                Poll::Ready(result) => self.end(index, result),
                Poll::Pending => {
                    self.bytes += payload.len();
                    self.under_way.push_back(UnderWay {
                        index,
                        bytes: payload.len(),
                        confirmation,
                    });
                }
            }
        }
        while !self.under_way.is_empty() {
            self.wait_for_oldest().await;
        }
    }

    async fn wait_for_oldest(&mut self) {
        let Some(mut oldest) = self.under_way.pop_front() else {
            return;
        };
        self.bytes -= oldest.bytes;
        match timeout_at(self.deadline, &mut oldest.confirmation).await {
            Ok(result) => self.end(oldest.index, result),
            Err(_) => {
                let late = Failure::new(
                    ErrorKind::OutcomeUnknown,
                    "RabbitMQ did not confirm within the publish timeout",
                );
                self.ended.push((oldest.index, End::Failed(late.clone())));
                for other in self.under_way.drain(..) {
                    self.ended.push((other.index, End::Failed(late.clone())));
                }
                self.bytes = 0;
                self.failure = Some(late);
                self.late = true;
            }
        }
    }

    fn end(&mut self, index: usize, result: lapin::Result<Confirmation>) {
        let end = match result {
            Ok(Confirmation::Ack(returned)) => {
                self.note(returned);
                End::Acked
            }
            Ok(Confirmation::Nack(returned)) => {
                self.note(returned);
                End::Nacked
            }
            Ok(Confirmation::NotRequested) => End::Failed(Failure::new(
                ErrorKind::OutcomeUnknown,
                "the channel is not in confirm mode",
            )),
            Err(cause) => {
                let alone = self.ended.is_empty() && self.under_way.is_empty();
                let failure = if alone && is_precondition(&cause) {
                    Failure::new(
                        ErrorKind::TooLarge,
                        "RabbitMQ refuses the size; lower max_payload_bytes",
                    )
                } else {
                    Failure::in_flight(cause)
                };
                self.failure.get_or_insert_with(|| failure.clone());
                End::Failed(failure)
            }
        };
        self.ended.push((index, end));
    }

    fn note(&mut self, returned: Option<BasicReturnMessage>) {
        if let Some(returned) = returned {
            let id = returned
                .delivery
                .properties
                .message_id()
                .as_ref()
                .map(ToString::to_string);
            self.returned
                .insert((id.unwrap_or_default(), returned.delivery.routing_key.to_string()));
        }
    }

    /// Writes the outcomes of what was sent.
    ///
    /// # Errors
    /// The channel is of no more use.
    pub(super) fn judge(
        mut self,
        batch: &[Message],
        outcomes: &mut [Option<Outcome>],
    ) -> Result<(), Failure> {
        // A return that no confirm brought along any more may belong to any acknowledged message.
        let returns_lost = self.failure.is_some() && !self.returned.is_empty();
        for (index, end) in std::mem::take(&mut self.ended) {
            let message = &batch[index];
            let error = |kind, context: &'static str| Err(Error::new(kind, "publish", context));
            outcomes[index] = Some(match end {
                End::Failed(failure) => Err(failure.during("publish")),
                End::Nacked => error(
                    ErrorKind::Rejected,
                    "RabbitMQ did not take it (queue full or failing)",
                ),
                End::Acked if self.is_returned(message) => error(
                    ErrorKind::Unroutable,
                    "no queue is bound for the topic; subscribe a group first",
                ),
                End::Acked if returns_lost => error(
                    ErrorKind::OutcomeUnknown,
                    "the connection was lost before all returns were in",
                ),
                End::Acked => Ok(Receipt::default()),
            });
        }
        self.failure.map_or(Ok(()), Err)
    }

    fn is_returned(&self, message: &Message) -> bool {
        !self.returned.is_empty()
            && self
                .returned
                .contains(&(message.id.to_string(), message.topic.clone()))
    }
}

async fn publish(
    channel: &Channel,
    exchange: ShortString,
    topic: ShortString,
    payload: &[u8],
    properties: BasicProperties,
) -> lapin::Result<Confirmation> {
    let options = BasicPublishOptions {
        mandatory: true,
        immediate: false,
    };
    channel
        .basic_publish(exchange, topic, options, payload, properties)
        .await?
        .await
}
