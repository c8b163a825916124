"""Known vulnerabilities of the packages in production: reads lock files, asks the registry, judges. Runs nothing of the application.

The managers' own audit commands are not used: those of Yarn 1 and of pnpm 10 and older ask endpoints that the public registry retired in
2026 (410), ``yarn npm audit`` and pnpm run what the repository configures (``yarnPath``, plugins, ``.pnpmfile.cjs``), and each prints
another format. What they would ask about is what is read here; tests compare the two with the real managers.
"""
