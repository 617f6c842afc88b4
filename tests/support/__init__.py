"""What the tests of several files share: tables and cases to run over, statistics, ranks, what the sources say."""
