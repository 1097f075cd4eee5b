//! The suite that every [`Backend`](crate::Backend) passes: one scenario, one test.
//!
//! A backend's test file says how to connect and what it claims; [`conformance!`](crate::conformance!)
//! makes the tests:
//!
//! ```
//! # #![allow(clippy::needless_doctest_main)]
//! use std::sync::Arc;
//!
//! use outbox_lock::conformance::Fixture;
//! use outbox_lock::{Backend, Capabilities, MemoryBackend};
//!
//! struct Memory(MemoryBackend);
//!
//! #[async_trait::async_trait]
//! impl Fixture for Memory {
//!     async fn backend(&self) -> Arc<dyn Backend> {
//!         Arc::new(self.0.clone())
//!     }
//!
//!     fn claims(&self) -> Capabilities {
//!         Capabilities { read_write: true, permits: true, fair: true, wakes: true, durable: false }
//!     }
//! }
//!
//! async fn setup() -> Result<Memory, String> {
//!     Ok(Memory(MemoryBackend::new()))
//! }
//!
//! outbox_lock::conformance!(setup);
//! # fn main() {}
//! ```
//!
//! The claims are compared with the declared [`Capabilities`](crate::Capabilities): what is declared and
//! not claimed, or the reverse, fails every test. A scenario whose capability is not claimed prints
//! `not applicable: <scenario> needs <capability>`. Keys are unique: the service may be shared, and the
//! suite run again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "the suite is test code: it fails by panicking and says what it leaves out"
)]

mod fixture;
pub mod scenarios;
mod stage;

pub use fixture::{Fixture, Need};
pub use stage::{LONG, NotApplicable, Played, SHORT, Stage, run};

/// Makes one test of each scenario. Takes the path of a function
/// `async fn() -> Result<impl Fixture, String>`; its error is the reason why the tests cannot run here,
/// printed as `SKIPPED: <scenario>: <reason>`.
#[macro_export]
macro_rules! conformance {
    ($setup:path) => {
        $crate::__lock_tests! {
            $setup:
            holding::a_held_key_is_refused_until_it_is_released,
            holding::the_same_owner_gets_the_same_token_again,
            holding::tokens_grow_with_every_grant,
            holding::many_contenders_hold_one_at_a_time,
            holding::an_expired_hold_frees_the_key,
            holding::asking_again_gives_a_full_ttl,
            holding::a_hold_of_one_millisecond_ends,
            holding::long_and_foreign_keys_are_locks_of_their_own,
            holding::what_remains_of_a_hold_is_told,
            renewing::a_renewal_sets_the_ttl_and_adds_nothing,
            renewing::an_expired_hold_is_not_revived,
            renewing::a_released_hold_is_not_revived,
            renewing::a_stolen_hold_is_told_and_left_alone,
            renewing::many_holds_are_answered_in_order,
            renewing::nothing_to_renew_is_answered_with_nothing,
            renewing::a_hold_is_renewed_by_its_owner_whatever_its_token,
            releasing::another_owner_releases_nothing,
            releasing::a_repeated_release_is_answered_as_the_first,
            releasing::a_repeated_release_does_not_touch_the_next_holder,
            releasing::an_expired_hold_is_not_there_to_release,
            releasing::leaving_ends_a_grant_that_was_never_learned,
            releasing::leaving_touches_nobody_else,
            releasing::cancelled_acquisitions_leave_nothing,
            releasing::a_hand_over_releases_and_grants,
            releasing::a_release_wakes_who_listens,
            line::waiters_are_served_in_the_order_of_their_arrival,
            line::asking_again_keeps_the_place,
            line::a_dead_waiter_is_passed_over,
            line::leaving_gives_up_the_place,
            line::nobody_overtakes_a_place,
            line::a_hand_over_overtakes_nobody,
            line::the_first_in_the_line_is_woken,
            sharing::readers_share_and_a_writer_excludes,
            sharing::a_waiting_writer_is_not_overtaken_by_readers,
            sharing::an_expired_reader_lets_the_writer_in,
            sharing::permits_are_limited,
            sharing::an_expired_permit_is_free_again,
            sharing::a_permit_is_renewed_and_released_alone,
            sharing::kinds_of_one_key_do_not_meet,
            minting::a_reminted_token_is_higher_and_later_ones_are_higher_still,
            minting::a_reminted_hold_is_renewed_and_released_as_before,
            minting::a_lost_hold_gets_no_token,
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __lock_tests {
    ($setup:path: $($module:ident::$scenario:ident,)*) => {
        $(
            #[test]
            fn $scenario() {
                $crate::conformance::run(
                    stringify!($scenario),
                    $setup,
                    |stage| Box::pin($crate::conformance::scenarios::$module::$scenario(stage)),
                );
            }
        )*
    };
}
