//! The suite that every [`Store`](crate::store::Store) passes: one scenario, one test.
//!
//! A store's test file says how to reach a database of its own; [`conformance!`](crate::conformance!) makes
//! the tests:
//!
//! ```text
//! async fn setup(need: Need) -> Result<impl Fixture, String> { … }
//!
//! outbox::conformance!(setup);
//! ```
//!
//! Every test gets a fresh database with the outbox tables in it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "the suite is test code: it fails by panicking and says what it leaves out"
)]

mod fixture;
pub mod scenarios;

pub use fixture::{Business, Fixture, Need, OpenTransaction, Stage, run};

/// Makes one test of each scenario. Takes the path of a function
/// `async fn(Need) -> Result<impl Fixture, String>`; its error is the reason why the tests cannot run here,
/// printed as `skipped: <scenario>: <reason>`.
#[macro_export]
macro_rules! conformance {
    ($setup:path) => {
        $crate::__store_tests! {
            $setup, Shared:
            claim::rolled_back_rows_are_never_claimed,
            claim::rows_come_by_position_above_the_floor_up_to_the_limit,
            claim::bytes_bound_a_claim_but_never_below_one_row,
            claim::a_message_comes_back_as_it_was_enqueued,
            claim::rows_of_foreign_hands_become_messages_or_malformed_records,
            claim::late_rows_appear_through_the_missing_positions,
            claim::limits_cut_late_rows_before_new_ones,
            claim::a_gap_is_dead_only_after_its_transaction_ended,
            claim::a_transaction_that_took_its_id_early_keeps_its_gap_alive,
            settle::published_rows_are_deleted_once,
            settle::a_late_row_between_published_ones_survives_the_settle,
            settle::a_stale_lease_changes_nothing,
            settle::parked_rows_keep_the_order_given,
            lease::only_one_of_two_owners_gets_a_shard,
            lease::a_renewed_lease_outlives_its_first_term,
            lease::an_ended_lease_is_taken_over_and_not_revived,
            lease::a_released_lease_is_free_at_once,
            lease::many_owners_share_the_shards_without_overlap,
            parked::a_waiting_row_holds_back_its_key_only,
            parked::scheduled_rows_come_at_their_time_and_hold_nothing_back,
            parked::begun_attempts_are_counted_and_guarded,
            parked::failed_attempts_wait_again_and_published_rows_leave,
            parked::a_dead_row_blocks_its_key_unless_skipped,
            parked::dead_letters_are_listed_redriven_and_discarded,
            parked::the_backlog_counts_every_kind,
            schema::a_healthy_database_passes_the_check,
            schema::missing_tables_name_the_command_that_makes_them,
            schema::a_missing_column_or_index_is_named,
            schema::a_newer_version_is_refused,
            schema::two_migrators_make_the_tables_once,
            schema::a_wait_ends_when_a_producer_commits,
            schema::foreign_settings_that_break_the_order_are_refused,
        }
        $crate::__store_tests! {
            $setup, Restart:
            schema::a_restarted_server_heals_by_itself,
        }
    };
}

/// Of [`conformance!`](crate::conformance!).
#[doc(hidden)]
#[macro_export]
macro_rules! __store_tests {
    ($setup:path, $need:ident: $($group:ident :: $scenario:ident),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $scenario() {
                $crate::conformance::run(
                    stringify!($scenario),
                    $setup($crate::conformance::Need::$need),
                    $crate::conformance::scenarios::$group::$scenario,
                )
                .await;
            }
        )+
    };
}
