"""A plan drafted from a user's own table.

::

    --from FILE …    names of columns           from_header: ranges of columns of a known kind
    --dictionary F   what a column holds        from_dictionary
    --public         the records themselves     from_records: types, ranges, categories, sizes
                                 │
                              Columns ── write: plan.toml

Types, ranges and lists of categories that come from private records are private themselves (H12),
so records are read where their owner says that they are public, and else the first line alone.
"""
