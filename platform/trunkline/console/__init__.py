"""The console: the workspace in a browser, at ``/console``.

The console is a layer above :mod:`trunkline.serving`, whose keys, limits and engine it uses; only
the command line imports it. ``trunkline serve`` mounts it beside the API, ``trunkline console``
runs it alone, without an engine. It is an application of its own: the API's middleware does not
run for it, and :class:`~trunkline.console.app.Console` does what is needed instead.

A request passes through these modules:

- :mod:`~trunkline.console.app` adds the security headers, reads the body and finds the page;
- :mod:`~trunkline.console.view` identifies the browser's session or the key, and checks the form;
- a function in :mod:`trunkline.console.routes` computes a :class:`~trunkline.console.pages.Page`:
  data, the name of a template, and the command that prints the same data;
- :mod:`~trunkline.console.rendering` renders it as HTML, or as JSON where the client asks for it.

To add a page:

1. Write a function in a module of ``routes/`` and decorate it with ``@routes.get("/path")``, or
   ``@routes.post("/path", role="tester")`` for an action. It takes a ``View`` and returns a
   ``Page`` or a ``Redirect``; it runs in a thread and may block. Path parameters are in
   ``view.path``, the query in ``view.query``, a checked form in ``view.form``. Add the module to
   ``MODULES`` in ``routes/__init__.py``.
2. Ask ``view.access`` what the key may see. Pass ``view.access.scope`` to every query, so that
   neither a row nor a count of anything else appears; ``view.access.check_adapter`` raises the
   same error for an adapter that does not exist and for one that the key may not use.
3. Write the template, ``{% extends "layout.html" %}``. Every form contains ``{{ form_token() }}``,
   every text is in ``_("…")``, and nothing has a ``style`` or an ``on…`` attribute.
   ``macros.html`` has scores, times, tables, commands and paging.
4. Add the page to ``NAVIGATION`` if it is a place of its own.
5. ``python -m trunkline.console.translations`` updates the catalog; translate what it lists. A
   test fails while a text has no translation.
6. Add the page to ``PAGES`` in ``tests/console_places.py``: each of them is requested as HTML and
   JSON, by every role, without JavaScript, at two widths, and checked by axe.

A stream (server-sent events) is an async function, see :mod:`trunkline.console.routes.runs`: it
sends the event ``changed``, and the page then requests its own fragment again.
"""
