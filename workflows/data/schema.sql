-- The tables of the sample database `support`, as its superuser makes them, and who may use them as an application of old.
-- `feedback_app` is what one static user of all steps would be. Nothing uses it: it is there to be compared with.
CREATE ROLE support_owner NOLOGIN;
CREATE TABLE customer_feedback (
    id integer PRIMARY KEY, kind text NOT NULL, comment text NOT NULL,
    customer_id integer NOT NULL, customer_name text NOT NULL, email text NOT NULL, phone text NOT NULL,
    address text NOT NULL, city text NOT NULL, birth_date date NOT NULL, account_balance numeric(12, 2) NOT NULL,
    loyalty_tier text NOT NULL, created_at timestamptz NOT NULL, channel text NOT NULL, internal_note text
);
CREATE TABLE feedback_translation (
    feedback_id integer NOT NULL REFERENCES customer_feedback (id), language text NOT NULL, translation text NOT NULL,
    run_id text NOT NULL, created_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (feedback_id, language, run_id)
);
CREATE TABLE ticket (
    id text PRIMARY KEY, customer_id integer NOT NULL, subject text NOT NULL, messages integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE mail_category (
    mailbox text NOT NULL, message_id text NOT NULL, category text NOT NULL, task_id text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (task_id, message_id)
);
CREATE TABLE payment_card (customer_id integer PRIMARY KEY, number text NOT NULL, expires date NOT NULL);
CREATE TABLE employee (id integer PRIMARY KEY, name text NOT NULL, salary numeric(12, 2) NOT NULL);
ALTER TABLE customer_feedback OWNER TO support_owner;
ALTER TABLE feedback_translation OWNER TO support_owner;
ALTER TABLE ticket OWNER TO support_owner;
ALTER TABLE mail_category OWNER TO support_owner;
ALTER TABLE payment_card OWNER TO support_owner;
ALTER TABLE employee OWNER TO support_owner;
GRANT USAGE ON SCHEMA public TO support_owner;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
REVOKE ALL ON DATABASE support, postgres, template1 FROM PUBLIC;
CREATE ROLE feedback_app NOLOGIN;
GRANT CONNECT ON DATABASE support TO feedback_app;
GRANT USAGE ON SCHEMA public TO feedback_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO feedback_app;
