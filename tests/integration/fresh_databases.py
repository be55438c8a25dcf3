"""A migrated database for each test, as new: a copy of its service's template, or an earlier test's, cleaned.

Making the 300 files of a copy takes longer than most tests do. So a database goes on to a later test, under a new name
and with the rows and sequences of the template; one whose tables, rights or functions a test changed is dropped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from services.runtime.migrations import migrate
from tests.integration.dependencies import ServiceDatabase, run_to_end
from tools.stack.postgres import DatabaseServer, create_roles, create_schemas

# Every change of the schema writes some of their rows anew; a change of a table's rows writes none. A copy has them as
# they are, places and transaction numbers included.
_CATALOGS = (
    *("pg_attrdef", "pg_attribute", "pg_class", "pg_constraint", "pg_default_acl", "pg_index", "pg_namespace"),
    *("pg_policy", "pg_proc", "pg_rewrite", "pg_trigger", "pg_type"),
)
_VERSIONS = " UNION ALL ".join(f"SELECT '{name}' || ctid::text || xmin::text AS it FROM {name}" for name in _CATALOGS)
_SHAPE = f"""(SELECT concat_ws(' ', datconnlimit, datacl,
    (SELECT count(*) FROM pg_db_role_setting WHERE setdatabase = pg_database.oid),
    (SELECT md5(string_agg(it, ' ' ORDER BY it)) FROM ({_VERSIONS}) AS versions))
FROM pg_database WHERE datname = current_database())"""


@dataclass
class _Template:
    name: str
    shape: str
    # Statements that make a copy's rows and sequences those of the template again.
    cleaning: str
    # Names of copies that nobody uses.
    clean: list[str] = field(default_factory=list)


class FreshDatabases:
    """Of every service, on one server."""

    def __init__(self, server: DatabaseServer, services: Iterable[str], secrets: Path) -> None:
        self._server = server
        self._services = tuple(services)
        self._roles = create_roles(server, self._services, secrets)
        self._templates: dict[str, _Template] = {}
        self._numbers = itertools.count(1)

    def take(self, service: str) -> ServiceDatabase:
        template = self._template(service)
        return self._database(service, template.clean.pop()) if template.clean else self.take_unused(service)

    def take_unused(self, service: str) -> ServiceDatabase:
        """Where what an earlier test leaves of its rows counts: dead pages, and what the planner knows of tables."""
        template, name = self._template(service), self._new_name(service)
        self._server.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template.name}" STRATEGY file_copy')
        return self._database(service, name)

    def give_back(self, database: ServiceDatabase) -> None:
        """Ends whoever is connected; who knows the old name only connects no more."""
        template, old = self._templates[database.service], database.server.name
        name = self._new_name(database.service)
        said = self._server.execute(
            f'ALTER DATABASE "{old}" ALLOW_CONNECTIONS false;\n'
            f"SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE datname = '{old}';\n"
            f'ALTER DATABASE "{old}" RENAME TO "{name}";\n'
            f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true;\n'
            f'\\connect "{name}"\n'
            f"SELECT {_SHAPE} = '{template.shape}' AS is_unchanged \\gset\n"
            f"\\if :is_unchanged\n{template.cleaning}\n\\echo cleaned\n\\endif"
        )
        if said.endswith("cleaned"):
            template.clean.append(name)
        else:
            self._server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def _template(self, service: str) -> _Template:
        if service not in self._templates:
            self._templates[service] = self._make_template(service)
        return self._templates[service]

    def _new_name(self, service: str) -> str:
        return f"{service}_{next(self._numbers)}"

    def _database(self, service: str, name: str) -> ServiceDatabase:
        return ServiceDatabase(self._server.database(name), service, self._roles[service])

    def _make_template(self, service: str) -> _Template:
        name = f"template_{service}"
        self._server.execute(f'CREATE DATABASE "{name}"')
        made = self._database(service, name)
        create_schemas(made.server, self._services)
        run_to_end(migrate(service, made.owner_settings))
        return _Template(name, made.server.execute(f"SELECT {_SHAPE}"), _cleaning(made))


def _cleaning(template: ServiceDatabase) -> str:
    schema = template.service
    names = template.server.execute(f"SELECT tablename FROM pg_tables WHERE schemaname = '{schema}'").split()
    tables = [f'"{schema}"."{name}"' for name in names]
    rows = template.server.execute(
        "\n".join(
            f"SELECT format('INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM "
            f"json_populate_recordset(NULL::{table}, %L);', json_agg(t)) FROM {table} t HAVING count(*) > 0;"
            for table in tables
        )
    )
    sequences = template.server.execute(
        "SELECT format('SELECT FROM setval(%L, %s, %L);', format('%I.%I', schemaname, sequencename), "
        f"coalesce(last_value, start_value), last_value IS NOT NULL) FROM pg_sequences WHERE schemaname = '{schema}'"
    )
    # As a replica: triggers that let nothing be deleted do not fire.
    deletes = "".join(f"DELETE FROM {table};" for table in tables)
    return f"BEGIN; SET LOCAL session_replication_role = replica;\n{deletes}\n{rows}\n{sequences}\nCOMMIT;"
