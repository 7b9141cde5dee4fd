// One module. `assembly` = our classes + Delta, for plain Spark; `package` = the thin jar, for platforms that bring Delta.
import java.util.jar.Attributes

// Compiled against; pyspark brings 4.0.5 of the same line at run time, which is not published as modules.
val sparkVersion = "4.0.1"
val deltaVersion = "4.0.1"

// The Python package's version is the jar's: the session refuses to start where they differ.
val packageVersion = IO
  .readLines(file("python/headrace/__init__.py"))
  .collectFirst { case line if line.startsWith("__version__") => line.split('"')(1) }
  .getOrElse(sys.error("python/headrace/__init__.py: no __version__"))

val deltaJars = taskKey[Seq[File]]("Copy Delta's own jars to .build/delta, for the tests of the thin jar")

lazy val headrace = (project in file("."))
  .settings(
    name                        := "headrace",
    organization                := "io.headrace",
    version                     := packageVersion,
    scalaVersion                := "2.13.16",
    crossPaths                  := false,
    Compile / scalaSource       := baseDirectory.value / "scala/src/main/scala",
    Compile / javaSource        := baseDirectory.value / "scala/src/main/java",
    Compile / resourceDirectory := baseDirectory.value / "scala/src/main/resources",
    Test / scalaSource          := baseDirectory.value / "scala/src/test/scala",
    Test / javaSource           := baseDirectory.value / "scala/src/test/java",
    Test / resourceDirectory    := baseDirectory.value / "scala/src/test/resources",
    mainClass                   := None,
    target                      := baseDirectory.value / "scala/target",
    scalacOptions ++= Seq(
      "-deprecation",
      "-feature",
      "-unchecked",
      "-Xlint",
      "-Wunused",
      "-Xfatal-warnings",
      "-release",
      "17"
    ),
    libraryDependencies ++= Seq(
      "org.apache.spark" %% "spark-sql"   % sparkVersion % Provided,
      "org.apache.spark" %% "spark-mllib" % sparkVersion % Provided,
      ("io.delta"        %% "delta-spark" % deltaVersion).exclude("org.antlr", "antlr4-runtime"), // Spark brings it
      "org.scalatest"    %% "scalatest"   % "3.2.19"     % Test
    ),
    Compile / packageBin / packageOptions += Package.ManifestAttributes(
      Attributes.Name.IMPLEMENTATION_VERSION -> version.value
    ),
    Test / fork := true,
    Test / javaOptions ++= Seq("-Xmx1g", "-XX:+UseSerialGC"),
    Test / testOptions += Tests.Argument(TestFrameworks.ScalaTest, "-oD"),
    assembly / assemblyJarName    := s"headrace-assembly-${version.value}.jar",
    assembly / assemblyOutputPath := baseDirectory.value / ".build" / (assembly / assemblyJarName).value,
    assembly / test               := {},
    assembly / assemblyOption     := (assembly / assemblyOption).value.withIncludeScala(false),
    assembly / packageOptions += Package.ManifestAttributes(Attributes.Name.IMPLEMENTATION_VERSION -> version.value),
    assembly / assemblyMergeStrategy := {
      case PathList("META-INF", "services", _*)                     => MergeStrategy.filterDistinctLines
      case PathList("META-INF", "versions", _, "module-info.class") => MergeStrategy.discard
      case "module-info.class"                                      => MergeStrategy.discard
      case PathList("META-INF", name) if name.startsWith("LICENSE") || name.startsWith("NOTICE") => MergeStrategy.concat
      case PathList("META-INF", _*) => MergeStrategy.discard
      case _                        => MergeStrategy.deduplicate
    },
    deltaJars := {
      val folder = baseDirectory.value / ".build/delta"
      (Compile / dependencyClasspath).value.files.filter(_.getName.startsWith("delta-")).map { jar =>
        val copy = folder / jar.getName
        IO.copyFile(jar, copy)
        copy
      }
    }
  )
