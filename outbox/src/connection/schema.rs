//! The version table, as diesel sees it.

diesel::table! {
    outbox_schema (component) {
        component -> Text,
        version -> Integer,
    }
}
