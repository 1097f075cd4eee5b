//! The suite that every adapter passes: one scenario, one test.
//!
//! An adapter's test file says how to connect and what it claims; [`conformance!`](crate::conformance!)
//! makes the tests:
//!
//! ```
//! # #![allow(clippy::needless_doctest_main)]
//! use std::sync::Arc;
//!
//! use outbox_broker::conformance::{Fixture, Need};
//! use outbox_broker::memory::MemoryBroker;
//! use outbox_broker::{Capability, Publisher, Subscriber};
//!
//! struct Memory(MemoryBroker);
//!
//! #[async_trait::async_trait]
//! impl Fixture for Memory {
//!     async fn publisher(&self) -> Arc<dyn Publisher> {
//!         Arc::new(self.0.publisher())
//!     }
//!
//!     async fn subscriber(&self) -> Arc<dyn Subscriber> {
//!         Arc::new(self.0.subscriber())
//!     }
//!
//!     fn claims(&self) -> Vec<Capability> {
//!         vec![
//!             Capability::KeyOrder,
//!             Capability::PrefixOrder,
//!             Capability::Deduplicates,
//!             Capability::NackDelay,
//!             Capability::CountsAttempts,
//!             Capability::DeadLetters,
//!         ]
//!     }
//! }
//!
//! async fn setup(_: Need) -> Result<Memory, String> {
//!     Ok(Memory(MemoryBroker::new()))
//! }
//!
//! outbox_broker::conformance!(setup);
//! # fn main() {}
//! ```
//!
//! The claims are compared with the declared [`Capabilities`](crate::Capabilities): a promise that is
//! declared and not claimed, or the reverse, fails every test. A scenario whose capability is not claimed
//! prints `not applicable: <scenario> needs <capability>`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "the suite is test code: it fails by panicking and says what it leaves out"
)]

mod fixture;
pub mod scenarios;
mod stage;

pub use fixture::{Fixture, Need, Server};
pub use stage::{NotApplicable, Played, Stage, run};

/// Makes one test of each scenario. Takes the path of a function
/// `async fn(Need) -> Result<impl Fixture, String>`; its error is the reason why the tests cannot run here,
/// printed as `SKIPPED: <scenario>: <reason>`.
#[macro_export]
macro_rules! conformance {
    ($setup:path) => {
        $crate::__conformance_tests! {
            $setup, Shared:
            content::one_message_arrives_as_it_was_published,
            content::a_thousand_messages_arrive,
            content::largest_payload_arrives,
            content::headers_of_every_shape_arrive_unchanged,
            content::every_attribute_arrives_unchanged,
            content::bytes_that_are_no_message_become_a_malformed_delivery,
            sending::empty_batch_is_answered_with_nothing,
            sending::too_large_message_fails_alone_and_results_keep_input_order,
            sending::unroutable_messages_are_reported_and_others_are_not,
            sending::repeated_id_is_suppressed,
            sending::one_id_may_go_to_two_topics,
            sending::publish_after_close_fails_as_closed,
            sending::concurrent_publishes_all_arrive,
            order::messages_of_a_key_arrive_in_order,
            order::accepted_messages_of_a_key_are_a_prefix,
            order::nacked_delivery_comes_before_later_messages_of_its_key,
            order::messages_behind_a_nacked_one_of_their_key_wait_for_it,
            order::unsettled_deliveries_come_back_in_order,
            settling::nacked_delivery_comes_again,
            settling::nack_delay_is_kept,
            settling::attempts_are_counted,
            settling::unsettled_deliveries_come_back_when_the_subscription_closes,
            settling::unsettled_deliveries_come_back_when_the_subscriber_closes,
            settling::settling_after_the_subscription_closed_is_stale,
            settling::acknowledged_messages_do_not_come_again,
            settling::dead_delivery_moves_on,
            settling::prefetch_bounds_what_is_unsettled,
            groups::two_groups_each_see_every_message,
            groups::two_members_share_the_messages,
            groups::group_that_starts_latest_sees_only_what_comes_after,
            groups::paused_subscription_hands_out_nothing_until_resumed,
            groups::lag_counts_what_is_not_acknowledged,
        }
        $crate::__conformance_tests! {
            $setup, OwnServer:
            faults::broker_killed_under_load_loses_no_accepted_message_and_no_order,
            faults::paused_broker_ends_a_publish_within_the_timeout,
            faults::stopped_broker_is_unreachable_and_a_restarted_one_is_found_again,
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    ($setup:path, $need:ident: $($module:ident::$scenario:ident,)*) => {
        $(
            #[test]
            fn $scenario() {
                $crate::conformance::run(
                    stringify!($scenario),
                    $crate::conformance::Need::$need,
                    $setup,
                    |stage| Box::pin($crate::conformance::scenarios::$module::$scenario(stage)),
                );
            }
        )*
    };
}
